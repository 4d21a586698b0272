"""Language teachers and their cache, against a whole model read position by position."""

import errno
import json
import os
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from graft.config import parts
from graft.config.options import Part, Term
from graft.errors import DiskProblem
from graft.losses import topk
from graft.outputs import TopK
from graft.tasks._context import Context, encode
from graft.teachers import _topk, _topk_cache, context_lm
from small import one_line
from small_lm import CPU, batch, build, disturb, lm, run_main, student, sums, task, tiny

FORMS = [{"form": "mse"}, {"form": "centred_mse"}, {"form": "kl"}, {"form": "jsd"},
         {"form": "kl", "tail": "renormalise", "tau": 2.0}, {"form": "jsd", "tail": "renormalise", "tau": 2.0}]
SAME = {"context": "zeroshot", "shots": 0, "k": 16}
FEW = {"context": "fewshot", "shots": 3, "k": 16}
ITEMS = (3, 17, 30, 9)


@pytest.fixture
def about():
    return task()


def teach(about, learner, **args):
    return build("teachers", "context_lm", about, learner, **args)


def losses(model, seen: TopK, tokens, position: str = "rows") -> list[float]:
    """The largest loss over the positions, for every form."""
    with torch.no_grad():
        out = model(tokens, features=("next",))
        logits = out.head(out.hidden if position == "rows" else out.features["next"])
    return [topk.loss(logits, seen, **form).abs().max().item() for form in FORMS]


def by_hand(about, path: str, context: Context, index, k: int) -> dict[str, TopK]:
    """The teacher's largest logits from whole sequences, one at a time, by transformers alone."""
    lm_ = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    split, found = about.splits["train"], {"rows": [], "next": []}
    for i in index:
        prompt, answer = encode(about, "train", [i], context)[0][0].long(), split.answers[i].long()
        with torch.no_grad():
            logits = lm_(torch.cat([prompt, answer])[None]).logits[0]
        found["rows"].append(logits[len(prompt) - 1:-1])
        found["next"].append(logits[len(prompt):])
    whole = {name: torch.cat(rows) for name, rows in found.items()}
    return {name: TopK(*rows.topk(k), rows.logsumexp(-1)) for name, rows in whole.items()}


def assert_same(one: TopK, other: TopK, atol: float = 1e-4) -> None:
    torch.testing.assert_close(one.values, other.values, rtol=0, atol=atol)
    torch.testing.assert_close(one.logsumexp, other.logsumexp, rtol=0, atol=atol)
    assert (one.indices == other.indices).float().mean() > 0.99  # near ties may change places


# ------------------------------------------------------------------------------------- what the teacher says

@pytest.mark.parametrize("serve", ["adapter", "copy"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_it_reads_examples_before_the_question_and_answers_at_the_same_tokens(serve, family):
    about = task(family)
    model = student(about, family, dropout=0.5)
    model.train()
    tokens, _ = batch(about, *ITEMS)
    for args in (FEW, {"context": "shuffled_answers", "shots": 3, "k": 16}, SAME):
        seen = teach(about, model, serve=serve, **args)(tokens, features=("rows", "next")).topk
        wanted = by_hand(about, lm(family), Context(args["context"], args["shots"]), ITEMS, 16)
        for name in ("rows", "next"):
            assert_same(seen[name], wanted[name])


@pytest.mark.parametrize("serve, lora", [("adapter", True), ("copy", True), ("copy", False)])
def test_with_the_students_context_the_loss_is_zero_at_the_start_and_shifted_by_one_it_is_not(about, serve, lora):
    model = student(about, lora=lora).eval()
    tokens, _ = batch(about, *ITEMS)
    seen = teach(about, model, serve=serve, **SAME)(tokens, features=("rows", "next")).topk
    for name in ("rows", "next"):
        assert max(losses(model, seen[name], tokens, name)) < 1e-6
    assert min(losses(model, seen["rows"], tokens, "next")) > 0.1
    assert min(losses(model, seen["next"], tokens, "rows")) > 0.1
    assert min(losses(model, teach(about, model, serve=serve, **FEW)(tokens).topk["rows"], tokens)) > 0.05


def test_after_training_the_adapter_teacher_is_still_the_copy_and_disturbs_nothing(about):
    model = student(about, dropout=0.5, checkpointing=True)  # its embeddings ask for gradients
    disturb(model)
    model.train()
    copy, own = (teach(about, model, serve=serve, **FEW) for serve in ("copy", "adapter"))
    tokens, _ = batch(about, *ITEMS)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert any(flags.values())
    state = torch.get_rng_state()
    seen = own(tokens, features=("rows", "next")).topk
    assert torch.equal(state, torch.get_rng_state()), "no dropout was drawn"
    for name, expected in copy(tokens, features=("rows", "next")).topk.items():
        assert torch.equal(seen[name].values, expected.values) and torch.equal(seen[name].indices, expected.indices)
        assert torch.equal(seen[name].logsumexp, expected.logsumexp)
    assert all(m.training for m in model.modules())
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(not x.requires_grad for top in seen.values() for x in (top.values, top.logsumexp))
    assert min(losses(model.eval(), seen["rows"], tokens)) > 0.01, "the student itself has its adapters on"
    model.train()
    out = model(tokens)
    topk.loss(out.head(out.hidden), seen["rows"], form="kl").sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in copy.parameters())


def test_a_copy_of_the_student_has_the_type_of_its_weights(about):
    copy = teach(about, student(about, dtype="bf16"), serve="copy", **FEW)
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}


def test_the_adapter_teacher_is_no_part_of_itself_and_the_copy_is_frozen(about):
    model = student(about)
    own, copy = (teach(about, model, serve=serve, **FEW) for serve in ("adapter", "copy"))
    assert not list(own.parameters()) and not own.state_dict()
    copy.train()
    assert not any(m.training for m in copy.modules()) and not any(p.requires_grad for p in copy.parameters())
    ids = {p.data_ptr() for p in model.parameters()}
    assert list(copy.parameters()) and not ids & {p.data_ptr() for p in copy.parameters()}


@pytest.mark.parametrize("batch_tokens, at_once", [(1, 1 << 26), (700, 1 << 26), (16384, 1000), (700, 5000)])
def test_pieces_do_not_change_what_it_says(about, monkeypatch, batch_tokens, at_once):
    model = student(about)
    tokens, _ = batch(about, *ITEMS)
    whole = teach(about, model, **FEW)(tokens, features=("rows", "next")).topk
    monkeypatch.setattr(_topk, "LOGITS_AT_ONCE", at_once)
    pieces = teach(about, model, batch_tokens=batch_tokens, **FEW)(tokens, features=("rows", "next")).topk
    for name in whole:
        assert_same(whole[name], pieces[name], 1e-5)


def test_groups_hold_every_sequence_once_and_no_more_tokens_than_allowed():
    lengths = torch.tensor([5, 90, 7, 7, 30, 200, 1])
    groups = _topk.within(lengths, 100)
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    for group in groups:
        assert len(group) * int(lengths[group].max()) <= 100 or len(group) == 1
    assert len(groups) == 4  # 200; 90; 30, 7, 7; 5, 1


def test_another_model_of_the_same_tokenizer_may_teach(about, tmp_path):
    other = lm(seed=5, layers=3)
    tokens, _ = batch(about, *ITEMS)
    seen = teach(about, student(about, lora=False), serve="copy", model=other, **FEW)(tokens).topk["rows"]
    assert_same(seen, by_hand(about, other, Context("fewshot", 3), ITEMS, 16)["rows"])


def test_a_finished_run_may_teach_and_a_run_with_another_tokenizer_may_not(about, tmp_path):
    for family in ("qwen3", "llama"):
        cfg = tiny(tmp_path / family, "student.lora=false", "train.duration=2st", family=family)
        run_main(cfg)
    tokens, _ = batch(about, *ITEMS)
    model = student(about)
    seen = teach(about, model, serve="copy", model=str(tmp_path / "qwen3/seed0"), **FEW)(tokens).topk["rows"]
    trained = by_hand(about, str(tmp_path / "qwen3/seed0/checkpoint-2"), Context("fewshot", 3), ITEMS, 16)["rows"]
    assert_same(seen, trained)
    message = one_line(teach, about, model, serve="copy", model=str(tmp_path / "llama/seed0"), **FEW)
    assert "another tokenizer" in message


def test_what_cannot_teach_is_refused(about, tmp_path):
    model, full = student(about), student(about, lora=False)
    drawn = student(about, lora=False, random_weights=True)
    wide = lm(vocabulary=about.num_classes + 5)
    for of, args, says in [
            (model, {"k": about.num_classes + 1}, "teacher.k: "),
            (full, {}, "teacher.serve: adapter needs a LoRA student"),
            (model, {"model": lm(seed=5)}, "teacher.serve: adapter needs"),
            (model, {"serve": "copy", "model": lm("llama")}, "another tokenizer"),
            (model, {"serve": "copy", "model": str(tmp_path / "nowhere")}, "teacher.model: "),
            (model, {"serve": "cache", "model": str(tmp_path / "nowhere")}, "teacher.model: "),
            (model, {"serve": "copy", "model": wide}, "the student 2"),
            (drawn, {"serve": "copy"}, "name teacher.model"), (drawn, {"serve": "cache"}, "name teacher.model"),
            (model, {"shots": 1, "context": "shuffled_answers"}, "shuffled_answers needs at least 2"),
            (model, {"shots": 60}, "shots: 60 worked examples"),
            (model, {"max_length": 100}, "teacher.max_length: must be at least")]:
        assert says in one_line(teach, about, of, **{**FEW, **args}), says
    assert teach(about, model, k=about.num_classes).k == about.num_classes


# --------------------------------------------------------------------------------------------------- the cache

class Interrupted(Exception):
    pass


def teacher_of(about, k: int = 16, shots: int = 3, path: str = "") -> context_lm.ContextLM:
    """The untrained model with `shots` examples."""
    own = context_lm.frozen_lm(about, path or lm(), "", "fp32")
    return context_lm.ContextLM(about, Context("fewshot" if shots else "zeroshot", shots), own, k, 4000)


def make_cache(folder: Path | str, about, *, k: int = 16, dtype: str = "fp32", positions=("rows", "next"),
               shots: int = 3, teacher=None, **options) -> int:
    """What `teacher`, or the untrained model, says; no folder: where it belongs."""
    teacher = teacher or teacher_of(about, k, shots)
    context = Context("fewshot" if shots else "zeroshot", shots)
    wanted = _topk_cache.about(about, context, teacher._lm[0].base, "fp32", dtype)
    return _topk_cache.build(_topk_cache.folder_for(wanted, str(folder)), wanted, k, positions, teacher, about,
                             device=CPU, autocast=nullcontext, **options)


def cached(about, folder: Path, **args):
    """The teacher of a student that reads this cache."""
    return teach(about, student(about), **{"serve": "cache", "path": str(folder), "cache_dtype": "fp32", **FEW, **args})


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A finished cache in float32; tests must not change it."""
    folder = tmp_path_factory.mktemp("cache") / "c"
    assert make_cache(folder, task()) == 54
    return folder


def content(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.load(file) for file in sorted(folder.glob("*.npy"))}


def test_the_cache_says_what_the_teacher_says(about, cache):
    tokens, _ = batch(about, *ITEMS)
    online = teach(about, student(about), **FEW)(tokens, features=("rows", "next")).topk
    kept = cached(about, cache)(tokens, features=("rows", "next")).topk
    for name in ("rows", "next"):
        assert_same(kept[name], online[name], 1e-5)
    manifest = json.loads((cache / "manifest.json").read_text())
    size = sum(file.stat().st_size for file in cache.glob("[rn]*.npy"))
    assert manifest["tokens"] == int(about.splits["train"].answers.lengths.sum())
    assert manifest["bytes"] <= size <= manifest["bytes"] + 8 * 128 and manifest["short"] == 0


def test_fewer_logits_than_cached_are_the_first_columns(about, cache):
    tokens, _ = batch(about, *ITEMS)
    few, all_ = (cached(about, cache, k=k)(tokens).topk["rows"] for k in (5, 16))
    assert few.values.shape[1] == 5 and torch.equal(few.values, all_.values[:, :5])
    assert torch.equal(few.indices, all_.indices[:, :5]) and torch.equal(few.logsumexp, all_.logsumexp)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_half_precision_keeps_equality_equal(about, tmp_path, scale):
    """At equality the bucket's KL through a float16 cache is zero but for rounding, however peaked the teacher is."""
    path = tmp_path / "sharp"
    shutil.copytree(lm(), path)
    sharp = AutoModelForCausalLM.from_pretrained(lm(), dtype=torch.float32)
    sharp.model.norm.weight.data *= scale
    sharp.save_pretrained(path)
    for k in (16, about.num_classes):
        teacher = teacher_of(about, k, 0, str(path))
        own = teacher._lm[0]
        make_cache(tmp_path / f"c{k}", about, k=k, dtype="fp16", shots=0, teacher=teacher)
        tokens, _ = batch(about, *ITEMS)
        kept = cached(about, tmp_path / f"c{k}", model=str(path), cache_dtype="fp16",
                      **{**SAME, "k": k})(tokens).topk["rows"]
        exact = teacher(tokens).topk["rows"]
        rounding = (exact.values - exact.logsumexp[:, None]).abs() * 2**-11 + 1e-5
        assert ((kept.values - exact.values).abs() <= rounding).all()
        with torch.no_grad():
            logits = own.head(own(tokens).hidden)
        for form in FORMS[2:]:
            assert topk.loss(logits, kept, **form).abs().max() < 1e-4
        gradient_of = logits.clone().requires_grad_()
        topk.loss(gradient_of, kept, form="kl").sum().backward()
        assert gradient_of.grad.abs().max() < 2e-3
        assert np.load(tmp_path / f"c{k}/rows.log_probs.npy").dtype == np.float16


def test_what_cannot_be_kept_is_refused(tmp_path):
    arrays = _topk_cache.Arrays(tmp_path, "rows", 4, 2, "fp16", "w+")
    indices = torch.tensor([[0, 1]])
    for values, total, says in [([1.0, float("nan")], 1.0, "not finite"), ([1.0, -float("inf")], 1.0, "not finite"),
                                ([1.0, 0.0], float("inf"), "not finite"), ([1.0, -7e4], 1.0, "does not fit float16")]:
        top = TopK(torch.tensor([values]), indices, torch.tensor([total]))
        assert says in one_line(arrays.write, 0, top)
    wide = _topk_cache.Arrays(tmp_path, "next", 4, 2, "fp32", "w+")
    wide.write(0, TopK(torch.tensor([[1.0, -7e4]]), indices, torch.tensor([1.0])))
    assert wide.read([(0, 1)], 2, CPU).values.tolist() == [[1.0, -7e4]]


def test_an_interrupted_cache_goes_on_and_is_refused_until_it_is_finished(about, tmp_path, cache):
    folder = tmp_path / "c"
    teacher = teacher_of(about)
    real, calls = teacher.forward, [0]

    def forward(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 4:
            raise Interrupted
        return real(*args, **kwargs)

    teacher.forward = forward
    with pytest.raises(Interrupted):
        make_cache(folder, about, teacher=teacher)
    done = np.count_nonzero(np.load(folder / "done.npy"))
    assert 0 < done < 54
    assert f"{done} of 54 items are done" in one_line(cached, about, folder)
    assert "teacher.k: 8, the unfinished cache" in one_line(make_cache, folder, about, k=8)
    assert make_cache(folder, about, teacher=teacher) == 54 - done
    assert calls[0] > 5
    ours, theirs = content(folder), content(cache)
    assert ours.keys() == theirs.keys() and all(np.allclose(ours[n], theirs[n], atol=1e-4) for n in ours
                                                if n.split(".")[1] not in ("indices", "npy"))
    assert make_cache(folder, about) == 0, "a finished cache is left alone"
    assert make_cache(folder, about, k=8) == 0, "also by those who want less"


def test_two_processes_share_the_work(about, tmp_path, cache):
    folder, barrier, counts = tmp_path / "c", threading.Barrier(2), {}
    teachers = [teacher_of(about) for _ in range(2)]  # here: transformers does not load in threads
    jobs = [threading.Thread(target=lambda rank=rank: counts.__setitem__(
        rank, make_cache(folder, about, teacher=teachers[rank], rank=rank, world=2, wait=lambda: barrier.wait(600))))
        for rank in (0, 1)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(600)
    assert sum(counts.values()) == 54 and min(counts.values()) > 10
    ours, theirs = content(folder), content(cache)
    assert all(np.allclose(ours[n], theirs[n], atol=1e-4) for n in ours if n.split(".")[1] not in ("indices", "npy"))


def test_a_cache_is_found_by_its_content(about, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))
    make_cache("", about)
    for k in (3, 16):
        assert cached(about, "", k=k).k == k
    assert "holds the 16 largest" in one_line(cached, about, "", k=17)
    for args in ({"shots": 2}, {"fewshot_seed": 1}, {"cache_dtype": "fp16"}):
        assert "build it with scripts/cache_teacher.py" in one_line(cached, about, "", **args)


def another_item(to: Path) -> str:
    shutil.copytree(sums(), to)
    rows = (to / "train.jsonl").read_text().splitlines()
    rows[7] = rows[7].replace("easy", "Easy")
    (to / "train.jsonl").write_text("\n".join(rows) + "\n")
    return str(to)


def other_template(to: Path) -> str:
    shutil.copytree(lm(), to)
    (file,) = [f for f in (to / "chat_template.jinja", to / "tokenizer_config.json") if f.exists()][:1]
    text = file.read_text()
    assert "<|im_start|>" in text
    file.write_text(text.replace("<|im_start|>", "<|im_start|> "))
    return str(to)


def other_tokenizer(to: Path) -> str:
    """Two letters have changed places."""
    shutil.copytree(lm(), to)
    about = json.loads((to / "tokenizer.json").read_text())
    ids = about["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (to / "tokenizer.json").write_text(json.dumps(about))
    return str(to)


@pytest.mark.parametrize("what, change", [
    ("items", lambda tmp: (task(root=another_item(tmp / "d")), {})),
    ("items", lambda tmp: (task(split_seed=1), {})),
    ("max_length", lambda tmp: (task(max_length=300), {})),
    ("template", lambda tmp: (task(tokenizer=other_template(tmp / "t")), {})),
    ("template", lambda tmp: (task(layout="plain"), {})),
    ("context.kind", lambda tmp: (task(), {"context": "random_shots"})),
    ("context.shots", lambda tmp: (task(), {"shots": 2})),
    ("context.seed", lambda tmp: (task(), {"fewshot_seed": 43})),
    ("context.max_length", lambda tmp: (task(), {"max_length": 2000})),
    ("model", lambda tmp: (task(), {"model": lm(seed=5)})),
    ("model", lambda tmp: (task(), {"model": lm(), "dtype": "bf16"})),
    ("precision", lambda tmp: (task(), {"precision": "bf16"})),
    ("dtype", lambda tmp: (task(), {"cache_dtype": "fp16"})),
])
def test_another_cache_is_refused(tmp_path, cache, what, change):
    about, args = change(tmp_path)
    message = one_line(teach, about, student(about), **{"serve": "cache", "path": str(cache), "cache_dtype": "fp32",
                                                        **FEW, **args})
    assert f"made with another {what} " in message


def test_a_student_or_a_cache_of_another_tokenizer_is_refused(tmp_path, about, cache):
    message = one_line(student, task(tokenizer=other_tokenizer(tmp_path / "t")))
    assert "student.model: " in message and "has another tokenizer than task.tokenizer" in message
    manifest = _topk_cache.read_manifest(cache)
    wanted = {**manifest["about"], "tokenizer": "0" * 64}
    assert "made with another tokenizer " in one_line(_topk_cache.refuse_other, cache, manifest, wanted, 1)


def test_a_cache_of_the_weights_of_another_dtype_is_refused(about, cache):
    message = one_line(teach, about, student(about, dtype="bf16"), serve="cache", path=str(cache), cache_dtype="fp32",
                       **FEW)
    assert "made with another model " in message


def test_a_cache_that_is_missing_too_small_or_lacks_a_position_is_refused(about, tmp_path, cache):
    assert "no cache of teacher logits" in one_line(cached, about, tmp_path / "nowhere")
    assert f"teacher.k: 17, the cache {cache} holds the 16" in one_line(cached, about, cache, k=17)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/manifest.json").write_text("{")
    assert "bad/manifest.json: damaged; build the cache again with scripts/cache_teacher.py" in one_line(
        cached, about, tmp_path / "bad")
    make_cache(tmp_path / "c", about, positions=("rows",))
    teacher = cached(about, tmp_path / "c")
    from graft.training.objective import Objective
    args = {"form": "kl", "tau": 1.0, "tail": "bucket", "position": "published"}
    message = one_line(Objective, (Term("topk", args),), student(about), teacher, seed=0)
    assert "no logits for position published" in message
    assert "holds positions ['rows'], wanted ['rows', 'next']" in one_line(make_cache, tmp_path / "c", about)


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)


DAMAGES = {"deleted": lambda file: file.unlink(), "cut": lambda file: file.write_bytes(file.read_bytes()[:-50]),
           "empty": lambda file: file.write_bytes(b""), "one bit": lambda file: flip(file, 0.7),
           "one bit of the header": lambda file: flip(file, 0.001), "zeros": lambda file: file.write_bytes(
               file.read_bytes()[:128] + bytes(file.stat().st_size - 128))}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_cache_is_refused_and_the_same_command_mends_it(about, tmp_path, cache, how, capsys):
    teacher, whole = teacher_of(about), content(cache)
    more = ("rows.log_probs.npy", "next.indices.npy", "next.logsumexp.npy") if how == "one bit" else ()
    for name in (*more, "rows.offset.npy", "done.npy", "manifest.json"):
        folder = tmp_path / name
        shutil.copytree(cache, folder)
        DAMAGES[how](folder / name)
        message = one_line(cached, about, folder)
        assert "cache_teacher.py" in message and (name in message or (name, how) == ("manifest.json", "deleted"))
        computed = make_cache(folder, about, teacher=teacher)
        said = capsys.readouterr().out
        assert name in said or (name, how) == ("manifest.json", "deleted")
        if how == "one bit" and name != "manifest.json":
            assert computed == 1, "only what is damaged is computed again"
        mended = content(folder)
        assert all(np.allclose(mended[n], whole[n], atol=1e-4) for n in whole if n.split(".")[1] not in (
            "indices", "npy"))
        cached(about, folder)


def test_damage_to_an_unfinished_cache_is_found_before_it_is_finished(about, tmp_path, cache):
    folder = tmp_path / "c"
    shutil.copytree(cache, folder)
    manifest = _topk_cache.read_manifest(folder)
    del manifest["sha256"]
    _topk_cache.write_manifest(folder, manifest)
    done = np.load(folder / "done.npy", mmap_mode="r+")
    done[5:9] = 0
    done.flush()
    flip(folder / "next.offset.npy", 0.99)  # of the last item
    assert make_cache(folder, about) == 5
    assert np.allclose(content(folder)["next.offset.npy"], content(cache)["next.offset.npy"], atol=1e-4)


def test_one_job_builds_a_cache_at_a_time(about, tmp_path):
    with _topk_cache._alone(tmp_path / "c"):
        assert "another job is running here" in one_line(make_cache, tmp_path / "c", about, exit_code=4)
    assert make_cache(tmp_path / "c", about) == 54


def test_processes_of_two_machines_build_no_cache_together(about, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert "1 of 2 processes are on this machine" in one_line(make_cache, tmp_path / "c", about, world=2)


def test_a_cache_of_a_model_with_more_embeddings_is_refused(about, tmp_path):
    wide = lm(vocabulary=about.num_classes + 5)
    make_cache(tmp_path / "c", about, teacher=teacher_of(about, path=wide))
    assert "the student 2" in one_line(cached, about, tmp_path / "c", model=wide)


def test_a_full_disk_is_noticed_before_anything_is_computed(about, tmp_path, monkeypatch):
    """Whether the free space is known to be too small, or the space is refused after all."""
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskProblem, match=r"MiB are free \(No space left on device\)$") as caught:
        make_cache(tmp_path / "c", about)
    assert caught.value.exit_code == 74
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "MiB are free" in one_line(make_cache, tmp_path / "c", about, exit_code=74)
    assert not [file for file in (tmp_path / "c").iterdir() if not file.name.endswith(".lock")]
    monkeypatch.undo()
    make_cache(tmp_path / "c", about)
    for file in (tmp_path / "c").glob("*.npy"):
        assert file.stat().st_blocks * 512 >= file.stat().st_size, "sparse: a full disk would end in SIGBUS"


def test_the_part_is_built_by_its_name(about):
    teacher = parts.build("teachers", Part("context_lm", {**FEW, "serve": "adapter"}), about, student(about))
    assert teacher.k == 16 and teacher.positions == ("rows", "next")


# ----------------------------------------------------------------------------------------------- hidden states

KLS = [Term("topk", {"form": form, "tau": tau, "tail": "bucket", "clip": 0.0, "position": position})
       for form, tau, position in (("kl", 1.0, "predicting"), ("reverse_kl", 2.0, "predicting"),
                                   ("jsd", 1.0, "published"))]


def taught(about, model, teacher, terms=KLS) -> tuple[torch.Tensor, dict, list[torch.Tensor]]:
    """The loss of a micro-batch, its terms and the adapters' gradients."""
    from graft.training.objective import Objective
    whole = Objective(tuple(terms), model, teacher, seed=0)
    tokens, targets = batch(about, *ITEMS)
    seen = teacher(tokens, features=whole.teacher_features)
    loss, values = whole(model(tokens, features=whole.student_features), seen, targets, None, [1.0] * len(terms),
                         window=7.0, micro_share=1.0)
    model.zero_grad()
    loss.backward()
    return loss.detach(), values, [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
@pytest.mark.parametrize("dtype, tolerance", [("fp32", 1e-5), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_hidden_states_are_the_whole_vocabulary(tmp_path, monkeypatch, family, dtype, tolerance):
    """Cached, they are the online teacher with K the whole vocabulary, to the cache's precision; and by hand."""
    about = task(family)
    model = student(about, family, dropout=0.0)
    disturb(model)
    whole = teach(about, model, **{**FEW, "k": about.num_classes})
    expected = taught(about, model, whole, KLS[:1] + KLS[2:])
    online = teach(about, model, keep="hidden", **FEW)
    torch.testing.assert_close(taught(about, model, online, KLS[:1] + KLS[2:]), expected, rtol=1e-4, atol=1e-5)
    wanted = _topk_cache.about(about, Context("fewshot", 3), model.base, "fp32", dtype, "hidden")
    _topk_cache.build(tmp_path, wanted, online.columns, ["rows", "next"], online, about, device=CPU,
                      autocast=nullcontext)
    kept = teach(about, model, keep="hidden", serve="cache", path=str(tmp_path), cache_dtype=dtype, **FEW)
    exact = taught(about, model, online)
    for pieces in (1 << 26, 3000):
        monkeypatch.setattr("graft.training.objective.LOGITS_AT_ONCE", pieces)
        loss, values, gradients = taught(about, model, kept)
        torch.testing.assert_close((loss, values), exact[:2], rtol=tolerance, atol=tolerance)
        size = torch.cat([g.flatten() for g in exact[2]]).norm()
        assert torch.cat([(a - b).flatten() for a, b in zip(gradients, exact[2])]).norm() < tolerance * size
    manifest = _topk_cache.read_manifest(tmp_path)
    assert manifest["bytes_per_token"] == 2 * 32 * {"fp32": 4}.get(dtype, 2)
    tokens, _ = batch(about, *ITEMS)
    from_hidden = model.head(kept(tokens).features["rows"])
    truth = by_hand(about, lm(family), Context("fewshot", 3), ITEMS, about.num_classes)["rows"]
    full = torch.empty_like(truth.values).scatter(1, truth.indices, truth.values)
    assert (from_hidden - full).abs().max() < 20 * tolerance


def test_hidden_states_of_a_head_that_is_another_one_are_refused(about, tmp_path):
    model, hidden = student(about), {"keep": "hidden", **FEW}
    for of, args, says in [
            (student(about, lora=False), {"serve": "copy"}, "teacher.keep: hidden needs a LoRA student"),
            (model, {"serve": "copy", "model": lm(seed=5)}, "teacher.model: keep: hidden"),
            (model, {"serve": "cache", "model": lm(seed=5)}, "teacher.model: keep: hidden")]:
        assert says in one_line(teach, about, of, **{**hidden, **args}), says
    llama = task("llama")  # its head is a layer of its own
    adapted = student(llama, "llama", targets=["q_proj", "lm_head"])
    assert "take the head out of student.targets" in one_line(teach, llama, adapted, **hidden)
    online = teach(about, model, **hidden)
    wanted = _topk_cache.about(about, Context("fewshot", 3), model.base, "fp32", "fp32", "hidden")
    _topk_cache.build(tmp_path, wanted, online.columns, ["rows"], online, about, device=CPU, autocast=nullcontext)
    message = one_line(cached, about, tmp_path)
    assert "made with another keep (hidden, wanted None)" in message, "a cache of one kind is none of the other"
    states = _topk_cache.States(tmp_path, "large", 2, 4, "fp16", "w+")
    assert "does not fit float16; use bf16 or fp32" in one_line(states.write, 0, torch.full((1, 4), 7e4))


@pytest.mark.parametrize("change, says", [
    (["student.lora=false", "teacher={name: context_lm, keep: hidden, serve: cache}"], "teacher.keep: hidden makes"),
    (["teacher={name: context_lm, cache_dtype: bf16}"], "teacher.cache_dtype: bf16 is for keep: hidden")])
def test_what_a_configuration_cannot_keep(tmp_path, change, says):
    terms = "objective=[{name: ce}, {name: topk}]"
    assert says in one_line(tiny, tmp_path, *change, terms, method="distill")
    free = "objective=[{name: topk, tau: 2.0}]"
    tiny(tmp_path, "teacher={name: context_lm, keep: hidden}", free, method="distill")
