"""Causal LM students against transformers and peft themselves, run whole."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graft import config
from graft.config.options import Term
from graft.evaluation.scoring import score_answers
from graft.runtime import checkpoint
from graft.students import _language
from graft.tasks import _prompts
from graft.training.objective import Objective
from small import BASE, one_line
from small_lm import FAMILIES, batch, build, disturb, lm, run_main, student, task, tiny

WAYS = [True, False]
way = pytest.mark.parametrize("lora", WAYS, ids=["lora", "full"])
families = pytest.mark.parametrize("family", FAMILIES)


def whole(model, tokens) -> torch.Tensor:
    """Logits (B, T, V) of all positions, by transformers."""
    return model.lm(input_ids=tokens.ids, use_cache=False).logits


def changed(family: str, to: Path, **values) -> str:
    """A copy of a tiny model with other values in its config.json."""
    shutil.copytree(lm(family), to)
    file = to / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return str(to)


def ce(model, tokens, targets) -> torch.Tensor:
    """The sum over all answer tokens, by the objective."""
    terms = Objective((Term("ce", {"smoothing": 0.0, "smooth_soft": True}),), model, None, seed=0)
    return terms(model(tokens), None, targets, None, [1.0], window=1.0, micro_share=1.0)[0]


# ------------------------------------------------------------------------------------------------- positions

@families
@way
def test_logits_and_cross_entropy_are_those_of_transformers_at_the_answer_tokens(family, lora):
    about = task(family)
    model = student(about, family, lora=lora)
    disturb(model)
    model.eval()
    tokens, targets = batch(about, 3, 17, 30)
    out = model(tokens, features=("next",))
    logits = whole(model, tokens)
    # By hand: item i's answer begins after its prompt; the first token and the end of the turn count.
    predicting, later, labels = [], [], torch.full_like(tokens.ids, -100)
    for b, i in enumerate((3, 17, 30)):
        prompt, answer = (len(x[i]) for x in (about.splits["train"].prompts, about.splits["train"].answers))
        predicting.append(logits[b, prompt - 1:prompt + answer - 1])
        later.append(logits[b, prompt:prompt + answer])
        labels[b, prompt:prompt + answer] = tokens.ids[b, prompt:prompt + answer]
        assert labels[b, prompt + answer - 1] == about.prompt.end[0]
    torch.testing.assert_close(out.head(out.hidden), torch.cat(predicting))
    torch.testing.assert_close(out.head(out.features["next"]), torch.cat(later))
    assert targets.tolist() == labels[labels >= 0].tolist()
    theirs = model.lm(input_ids=tokens.ids, labels=labels, use_cache=False).loss * len(targets)
    torch.testing.assert_close(ce(model, tokens, targets), theirs)


@way
def test_padding_has_no_influence(lora):
    """Five lengths in one batch, or one by one: the same hidden states, loss and gradients."""
    about = task()
    index = (3, 17, 30, 44, 9)
    assert len({int(about.splits["train"].lengths[i]) for i in index}) > 3
    results = []
    for parts in ([index], [(i,) for i in index]):
        model = student(about, lora=lora, dropout=0.0)
        disturb(model)
        hidden, loss = [], 0.0
        for part in parts:
            tokens, targets = batch(about, *part)
            hidden.append(model(tokens).hidden.detach())
            loss = loss + ce(model, tokens, targets)
        loss.backward()
        results.append([torch.cat(hidden), loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_another_value_of_the_padding_changes_nothing():
    about = task()
    model = student(about).eval()
    tokens, _ = batch(about, 3, 17, 30)
    before = model(tokens, features=("next",))
    lengths = about.splits["train"].lengths[[3, 17, 30]]
    padding = torch.arange(tokens.ids.shape[1]) >= lengths[:, None]
    assert padding.any()
    tokens.ids[padding] = 7
    after = model(tokens, features=("next",))
    assert torch.equal(before.hidden, after.hidden) and torch.equal(before.features["next"], after.features["next"])


# ------------------------------------------------------------------------------------------------------ head

def test_soft_capped_logits(tmp_path):
    about = task("gemma3")
    capped = changed("gemma3", tmp_path / "capped", final_logit_softcapping=1.0)
    model, free = student(about, "gemma3", model=capped).eval(), student(about, "gemma3").eval()
    tokens, _ = batch(about, 3, 17)
    out = model(tokens)
    torch.testing.assert_close(out.head(out.hidden), whole(model, tokens).flatten(0, 1)[tokens.rows])
    assert (out.head(out.hidden) - free.head(out.hidden)).abs().max() > 0.1, "the cap must bite"


@pytest.mark.parametrize("model, scaling", [(CohereForCausalLM, {"logit_scale": 0.25}),
                                            (GraniteForCausalLM, {"logits_scaling": 8.0})])
def test_scaled_logits(model, scaling):
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "initializer_range": 0.5, "pad_token_id": 0, "eos_token_id": 1}
    own = model(model.config_class(**sizes, **scaling)).eval()
    ids = torch.arange(9)[None]
    head = _language.Head(own)
    with torch.no_grad():
        logits = head(own.get_decoder()(ids, use_cache=False).last_hidden_state)
        torch.testing.assert_close(logits, own(ids, use_cache=False).logits)
        head.scale = 1
        assert "its head is not known" in one_line(_language.check_head, "student.model", own, head)


def test_the_head_is_checked_without_an_attention_that_needs_a_gpu(monkeypatch):
    def needs_a_gpu(*args, **kwargs):
        raise RuntimeError("only for CUDA tensors")

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "needs_a_gpu", needs_a_gpu)
    own = AutoModelForCausalLM.from_pretrained(lm(), attn_implementation="needs_a_gpu")
    with pytest.raises(RuntimeError, match="CUDA"):
        own(torch.arange(4)[None])
    _language.check_head("student.model", own, _language.Head(own))
    assert own.config._attn_implementation == "needs_a_gpu"


@pytest.mark.parametrize("strange", [lambda x: 1.1 * x, lambda x: x + torch.arange(x.shape[-1]) / 50, torch.tanh],
                         ids=["scaled", "biased", "capped"])
def test_a_head_that_does_more_to_its_logits_is_refused(monkeypatch, strange):
    real = LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        out.logits = strange(out.logits)
        return out

    about = task("llama")
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    assert "its head is not known" in one_line(student, about, "llama")


def test_more_embeddings_than_tokens_are_fine_and_fewer_are_refused(tmp_path):
    about = task()
    wide = lm(vocabulary=about.num_classes + 7)
    model = student(about, model=wide).eval()
    tokens, targets = batch(about, 3)
    out = model(tokens)
    assert out.head(out.hidden).shape == (len(targets), about.num_classes + 7)
    narrow = changed("qwen3", tmp_path / "narrow", vocab_size=100)
    message = one_line(student, about, model=narrow, random_weights=True)
    assert "task.tokenizer" in message and "has 100 embeddings" in message


# ---------------------------------------------------------------------------------------------- what trains

def step(model, tokens, targets, seed: int = 0) -> dict[str, torch.Tensor]:
    """Gradients of one step with dropout, which are then applied."""
    torch.manual_seed(seed)
    model.train()
    ce(model, tokens, targets).backward()
    found = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                found[name] = p.grad
                p -= 1e-2 * p.grad
                p.grad = None
    return found


@families
@way
def test_checkpointing_changes_no_gradient_and_reaches_the_first_layer(family, lora):
    about = task(family)
    tokens, targets = batch(about, 3, 17)
    plain, saving = (student(about, family, lora=lora, checkpointing=on, dropout=0.3) for on in (False, True))
    # It is really on: with it the layers run twice.
    calls = [0]
    saving.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    for i in range(2):
        one, other = step(plain, tokens, targets, i), step(saving, tokens, targets, i)
        torch.testing.assert_close(one, other)
        assert calls == [2 * (i + 1)]
        if lora:
            first = {kind: [g.abs().max().item() for name, g in other.items()
                            if f"lora_{kind}" in name and "layers.0." in name] for kind in "AB"}
            assert len(first["A"]) == len(first["B"]) == 7 and min(first["B"]) > 0
            assert min(first["A"]) > 0 if i else max(first["A"]) == 0, "B is zero before the first step"


def test_only_adapters_are_trained_in_fp32_and_the_base_stays(tmp_path):
    about = task()
    model = student(about, dtype="bf16")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2 and all("lora_" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    adapters = {name: p.clone() for name, p in trained.items()}
    for i in range(3):
        step(model, *batch(about, 3, 17), i)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters() if name in before)
    assert all(not torch.equal(adapters[name], p) for name, p in trained.items())


@way
def test_what_a_model_that_also_sees_does_not_use_for_text_is_not_trained(tmp_path, lora):
    """Its vision tower has layers of the same names; untouched by every loss they would stop DDP at the second step."""
    text = json.loads((Path(lm("gemma3")) / "config.json").read_text())
    shutil.copytree(lm("gemma3"), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}
    Gemma3ForConditionalGeneration(Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4)).save_pretrained(
        tmp_path / "model")
    about = task("gemma3")
    model = student(about, "gemma3", lora=lora, model=str(tmp_path / "model"))
    ce(model, *batch(about, 3, 17)).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and not any("vision" in name or "projector" in name for name in trained)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained


def test_full_fine_tuning_has_master_weights_in_fp32_and_trains_all(tmp_path):
    path = lm("llama")
    half = tmp_path / "half"
    shutil.copytree(path, half)
    AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(half)
    model = student(task("llama"), "llama", model=str(half), lora=False)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    gradients = step(model, *batch(task("llama"), 3, 17))
    assert len(gradients) == len(list(model.parameters())) and all(g.abs().max() > 0 for g in gradients.values())


def test_untrained_is_the_base_and_leaves_everything_as_it_was(tmp_path):
    about = task()
    path = changed("qwen3", tmp_path / "lm", attention_dropout=0.5)  # adapters that are off have no dropout
    model, base = student(about, model=path, dropout=0.5), student(about, lora=False).eval()
    disturb(model)
    model.train()
    tokens, _ = batch(about, 3, 17)
    assert not torch.equal(model(tokens).hidden, model(tokens).hidden)
    flags = [p.requires_grad for p in model.parameters()]
    with model.untrained(), torch.no_grad():
        assert torch.equal(model(tokens).hidden, base(tokens).hidden)
        assert torch.equal(model(tokens).hidden, model(tokens).hidden), "dropout is off"
    assert all(m.training for m in model.modules()) and flags == [p.requires_grad for p in model.parameters()]
    with pytest.raises(ZeroDivisionError), model.untrained():
        raise ZeroDivisionError
    assert all(m.training for m in model.modules()) and flags == [p.requires_grad for p in model.parameters()]
    assert not torch.equal(model.eval()(tokens).hidden, base(tokens).hidden)
    with model.untrained():
        pass
    assert not any(m.training for m in model.modules())


# ------------------------------------------------------------------------------------------------ checkpoints

@families
@way
def test_a_checkpoint_is_a_model_or_an_adapter_for_transformers_and_peft(tmp_path, family, lora):
    """And a finished run of full fine-tuning is a model for another run."""
    about = task(family)
    cfg = tiny(tmp_path / "x", f"student.lora={lora}", "train.duration=2st", family=family)
    run_main(cfg)
    folder = cfg.run_dir / "checkpoint-2"
    ours = student(about, family, lora=lora)
    ours.load_state_dict(checkpoint.load_model(cfg.run_dir)[0])
    tokens, _ = batch(about, 3, 17)
    with torch.no_grad():
        logits = whole(ours.eval(), tokens)
        untouched = AutoModelForCausalLM.from_pretrained(lm(family), dtype=torch.float32).eval()
        assert not torch.allclose(logits, untouched(tokens.ids).logits, atol=1e-2), "nothing was learned"
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks by a name of the past
            theirs = (PeftModel.from_pretrained(untouched, str(folder)) if lora
                      else AutoModelForCausalLM.from_pretrained(str(folder))).eval()
        torch.testing.assert_close(theirs(tokens.ids).logits, logits, rtol=0, atol=0)
    for key in ("tokenizer_sha256", "template_sha256"):
        assert getattr(_prompts.load(str(folder)), key) == getattr(about.prompt, key)
    tokenizer, own = AutoTokenizer.from_pretrained(str(folder)), about.prompt.tokenizer
    assert len(tokenizer) == about.num_classes and tokenizer("1 + 2")["input_ids"] == own("1 + 2")["input_ids"]
    assert tokenizer.chat_template == own.chat_template and tokenizer.eos_token == own.eos_token
    assert GenerationConfig.from_pretrained(str(folder)).eos_token_id == ours.model.generation_config.eos_token_id
    names = set(checkpoint.load(folder)[0]["adapter_model" if lora else "model"])
    if lora:
        assert not (folder / "model.safetensors").exists() and len(names) == 28
        about_it = json.loads((folder / "adapter_config.json").read_text())
        assert about_it["base_model_name_or_path"] == lm(family) and about_it["r"] == 4
    else:
        tied = AutoConfig.from_pretrained(lm(family)).tie_word_embeddings
        assert tied == ("lm_head.weight" not in names) and "model.embed_tokens.weight" in names
        assert AutoConfig.from_pretrained(str(folder)).architectures == [type(ours.lm).__name__]
        assert AutoConfig.from_pretrained(str(folder)).use_cache, "generation elsewhere would be slow"
        following = student(about, family, model=str(cfg.run_dir), lora=False).eval()
        assert torch.equal(whole(following, tokens), logits)


def test_trained_weights_come_back_and_others_are_refused():
    about = task()
    for lora in WAYS:
        model, other = student(about, lora=lora), student(about, lora=lora, seed=1)
        disturb(model)
        other.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
        tokens, _ = batch(about, 3)
        assert torch.equal(whole(model.eval(), tokens), whole(other.eval(), tokens))
    adapters = student(about).state_dict()
    fewer = student(about, targets=["q_proj"])
    for wrong in (adapters, {}, {f"x.{k}": v for k, v in fewer.state_dict().items()}):
        assert "another architecture" in one_line(fewer.load_state_dict, wrong)


def test_saving_asks_nobody_but_the_disk(monkeypatch):
    """peft would ask the hub about a base model that is no folder any more."""
    model = student(task())
    import peft.utils.save_and_load as theirs

    def asked(*_):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(theirs, "check_file_exists_on_hf_hub", asked)
    model.lm.peft_config["default"].base_model_name_or_path = "somebody/something"
    assert len(model.state_dict()) == 28


def test_the_seed_decides_the_adapters_and_random_weights():
    about = task()
    for args in ({}, {"lora": False, "random_weights": True}):
        one, same, other = (student(about, seed=seed, **args).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------- validation

@pytest.mark.parametrize("at_once", [1 << 26, 4000])
def test_validation_is_over_answer_tokens_and_does_not_depend_on_batches(monkeypatch, at_once):
    from graft.evaluation import scoring
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
    about = task()
    split = about.splits["val"]
    model = student(about)
    model.train()
    whole_split = score_answers(model, split, 64)
    assert model.training
    for size in (1, 4):
        assert score_answers(model, split, size) == pytest.approx(whole_split, rel=1e-5)
    total, right, count = 0.0, 0, 0
    model.eval()
    for i in range(len(split)):
        prompt, answer = split.prompts[i].long(), split.answers[i].long()
        with torch.no_grad():
            logits = model.lm(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1:-1]
        total += F.cross_entropy(logits, answer, reduction="sum").item()
        right += (logits.argmax(-1) == answer).sum().item()
        count += len(answer)
    assert whole_split == pytest.approx({"nll": total / count, "token_accuracy": right / count}, rel=1e-5)


def test_validation_with_fewer_items_than_processes(monkeypatch):
    """The process without items adds zeros; the reduction is stood in for by the sum of both processes' totals."""
    import torch.distributed as dist

    about = task(val_fraction=1 / 60)
    assert len(about.splits["val"]) == 1
    model = student(about)
    totals = []
    monkeypatch.setattr(dist, "all_reduce", lambda mine: (totals.append(mine.clone()), mine.copy_(sum(totals))))
    shares = [score_answers(model, about.splits["val"], 4, rank, 2) for rank in (0, 1)]
    assert totals[1].tolist() == [0, 0, 0] and shares[0] == shares[1] == score_answers(model, about.splits["val"], 4)


def test_logits_that_are_not_finite_are_reported():
    about = task()
    model = student(about, lora=False)
    nn.init.constant_(model.lm.model.norm.weight, float("nan"))
    assert "not finite" in one_line(score_answers, model, about.splits["val"], 4)


# -------------------------------------------------------------------------------------------------- bad input

def test_models_that_cannot_be_students(tmp_path):
    about = task()
    (tmp_path / "empty").mkdir()
    encoder = changed("qwen3", tmp_path / "t5", model_type="t5", architectures=["T5Model"])
    cut = changed("qwen3", tmp_path / "cut")
    file = Path(cut) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    deeper = changed("qwen3", tmp_path / "deeper", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    other = changed("qwen3", tmp_path / "other", intermediate_size=40)
    for model in (str(tmp_path / "nowhere"), str(tmp_path / "empty"), encoder, cut, deeper, other):
        assert one_line(student, about, model=model).startswith(f"student.model: {model}: ")
    assert "has no layer c_attn" in one_line(student, about, targets=["q_proj", "c_attn"])
    assert "expected names of linear layers, got none" in one_line(student, about, targets=[])
    for name, kind in (("input_layernorm", "Qwen3RMSNorm"), ("self_attn", "Qwen3Attention"), ("embed_tokens", "Embed")):
        assert f"student.targets: {name} of {lm()} is {kind}" in one_line(student, about, targets=["q_proj", name])
    short = changed("qwen3", tmp_path / "short", max_position_embeddings=100)
    assert re.match(r"task.max_length: sequences of up to \d+ tokens are more than the 100 positions of student.model",
                    one_line(student, about, model=short))
    enough = changed("qwen3", tmp_path / "enough", max_position_embeddings=200)
    assert "teacher.max_length: sequences" in one_line(build, "teachers", "context_lm", about, student(
        about, model=enough), shots=3, k=8)
    texts = Path(changed("qwen3", tmp_path / "texts"))
    for ends in ("<|im_end|>", ["<|im_end|>"], [2, -1], True):
        (texts / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert "eos_token_id in config.json or generation_config.json: expected token numbers" in one_line(
            student, about, model=str(texts))


def test_an_adapter_is_no_model(tmp_path):
    cfg = tiny(tmp_path / "x", "train.duration=1st", "optim.warmup=0st")
    run_main(cfg)
    for path in (cfg.run_dir, cfg.run_dir / "checkpoint-1"):
        assert "is an adapter" in one_line(student, task(), model=str(path))
    unfinished = tiny(tmp_path / "y", "student.lora=false", "train.duration=1st", "optim.warmup=0st")
    run_main(unfinished)
    info = unfinished.run_dir / "checkpoint-1/trainer.json"
    info.write_text(info.read_text().replace('"final": true', '"final":false'))
    assert "trainer.json" in one_line(student, task(), model=str(unfinished.run_dir))


# --------------------------------------------------------------------------------------- configuration

@pytest.mark.parametrize("change, says", [
    (["student.trust_remote_code=true"], "student.revision: trust_remote_code needs a commit of 40 hex digits"),
    (["student.trust_remote_code=true", "student.revision=main"], "40 hex digits, got 'main'"),
    (["augment=[{name: flip}]"], "augment: text is not augmented"),
    (["train.average=ema"], "train.average: averaged weights"),
    (["method=ss_distill"], "method: ss_distill is for images"),
    (["student={name: vit, patch: 4}", "task.tokenizer=x"], "student.name: vit reads images, task gsm8k is of text"),
    (["task={name: digits}"], "student.name: causal_lm reads text, task digits is of images"),
    (["teacher={name: context_lm}", "objective=[{name: ce}, {name: kd}]"], "objective.1.name: kd compares"),
    (["teacher={name: context_lm}", "objective=[{name: ce}, {name: cka}]"], "objective.1.name: cka compares"),
    (["teacher={name: dinov2}"], "teacher.name: dinov2 reads images"),
    (["objective=[{name: ce}, {name: topk}]"], "needs a teacher"),
    (["train.compile=default"], "train.compile: default would make a graph for every length"),
    (["student.lora=false", "student.dtype=bf16"], "student.dtype: full fine-tuning needs fp32 master weights"),
    (["train.precision=bf16", "teacher={name: context_lm}", "method=distill"], "teacher.precision: must be"),
    (["teacher={name: context_lm, shuffle: true}", "method=distill"], "view and shuffle are for images"),
])
def test_configurations_that_make_no_sense_are_refused_before_anything_is_loaded(tmp_path, change, says):
    assert says in one_line(tiny, tmp_path / "x", *change)


def test_the_teachers_precision_may_follow_a_default(tmp_path):
    teacher = "teacher={name: context_lm, precision: '${train.precision}'}"
    for change, precision in (([], "fp32"), (["train.precision=bf16"], "bf16")):
        assert tiny(tmp_path / "x", teacher, "method=distill", *change).teacher.args["precision"] == precision


def test_topk_is_for_text():
    message = one_line(config.load, [BASE], ["objective=[{name: ce}, {name: topk}]", "teacher={name: dinov2}"])
    assert "objective.1.name: topk" in message
