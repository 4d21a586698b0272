"""What language studies will cost: answers, contexts, teachers that read along, models inside larger ones."""

import gc
from contextlib import nullcontext

import pytest
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Gemma3Config

import small_lm
from graft.config import study
from graft.config.study.graph import Asked, Graph
from graft.evaluation import _transformers
from graft.evaluation.generation import Stop
from graft.planning import architectures, costs, models, reading
from graft.planning.answering import answers
from graft.planning.data import Told, data_of
from graft.planning.measure import emptied, state_of, without_data
from graft.planning.study import planned
from small import ROOT
from test_planning import most_held

TEACHER = ["method=distill", "teacher.name=context_lm", "teacher.shots=2", "teacher.k=8",
           "objective=[{name: ce},{name: topk}]"]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_answers_cost_what_generating_them_does(family):
    size, prompt, new = 8, 60, 30
    lm = small_lm.student(small_lm.task(family), family, lora=False)
    nothing = Stop((lm.head.vocabulary - 1,), (), new)
    lm.model.get_output_embeddings().weight.data[-1] = 0  # never the likeliest: no answer ends early
    gc.collect()  # what an earlier profile saw come would be seen to go in this one
    with FlopCounterMode(display=False) as counted, profile(activities=[ProfilerActivity.CPU],
                                                            profile_memory=True) as done:
        said = _transformers.answer(lm.eval().model, [[5] * prompt] * size, nothing, str)
    assert [len(ids) for ids in said] == [new] * size
    with without_data():
        emptied(lm)
        planned_cost = answers(lm, nullcontext, size, prompt, new, [*state_of(lm)])
    assert planned_cost.flops == pytest.approx(counted.get_total_flops(), rel=0.02)
    assert planned_cost.bytes == pytest.approx(most_held(done), rel=0.25)


def test_an_answer_holds_the_keys_and_values_of_its_context(tmp_path):
    cfg = small_lm.tiny(tmp_path, f"student.model={small_lm.lm(layers=9)}", *TEACHER, "evaluate.batch_size=64")
    held = {}
    for new in (100, 300):
        longer = small_lm.tiny(tmp_path, *cfg.overrides, f"evaluate.max_new_tokens={new}")
        held[new] = reading.of_icl(longer, data_of(longer, Told()), {}, [0], [], ["test"])
    about = AutoConfig.from_pretrained(small_lm.lm(layers=9))
    each = 2 * 9 * about.num_key_value_heads * about.head_dim * 4 * 64  # bytes of a token of 64 answers in fp32
    assert held[300].peak - held[100].peak == pytest.approx(200 * each, rel=0.2)
    assert held[300].flops > 2.5 * held[100].flops


def test_every_context_is_answered_behind(tmp_path):
    cfg = small_lm.tiny(tmp_path, *TEACHER, "evaluate.max_new_tokens=8")
    data = data_of(cfg, Told())

    def flops(shots, *others):
        return reading.of_icl(cfg, data, {}, shots, others, ["val", "test"]).flops

    assert flops([0, 2]) > 2.2 * flops([0]) and flops([0], cfg) == flops([0, 2])
    sampled = reading.of_samples(cfg, data, {}).flops / data.sizes["train"]
    assert sampled == flops([2]) / (data.sizes["val"] + data.sizes["test"])
    graph = Graph(study.load("words_smollm2"), Asked())
    assert list(graph.contexts) == list(graph.study.icl.contexts)
    assert graph.contexts["fixed"].teacher.args["context"] == "fixed_shots"


STUDY = """
base: {base}
seeds: [0, 1]
cache: true
set: [{words}]
deltas:
  method: {{method: distill, teacher: {{name: context_lm, shots: 2, k: 8}}, objective: [{{name: ce}}, {{name: topk}}]}}
conditions:
  baseline: {{}}
  topk: {{configs: [method]}}
  zeroshot: {{configs: [method], set: [teacher.context=zeroshot]}}
  hidden: {{configs: [method], set: [teacher.keep=hidden]}}
  sampled: {{configs: [method], set: [teacher.targets=teacher]}}
  on_policy: {{configs: [method], set: [teacher.targets=student, "objective.ce.weight=0"]}}
  ema: {{configs: [method], set: [teacher.serve=ema]}}
"""


def test_conditions_that_compute_something_else_cost_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = tmp_path / "mine.yaml"
    words = ", ".join([*small_lm.KEYS, "evaluate.batch_size=8", "evaluate.max_new_tokens=120"])
    file.write_text(STUDY.format(base=small_lm.base_config(), words=words))
    plan = planned(Graph(study.load(str(file)), Asked()), Told())  # without icl
    found = {row.name: row.costs for row in plan.rows}
    assert not [row.missing for row in plan.rows if row.missing] and plan.comparisons == 6
    assert found["samples-sampled"].steps == 0 and found["samples-sampled"].flops > found["cache-zeroshot"].flops
    assert found["topk"] == found["zeroshot"] and found["hidden"].flops_step > found["topk"].flops_step
    assert found["on_policy"].flops_step > 1.5 * found["ema"].flops_step > 1.5 * found["topk"].flops_step
    assert found["on_policy"].peak > found["ema"].peak
    average = found["ema"].memory["weights"] - found["topk"].memory["weights"]
    assert average == found["ema"].memory["gradients"] == found["ema"].checkpoints - found["topk"].checkpoints
    note, = plan.notes
    assert note.startswith("samples-sampled, on_policy: answers are counted with all of evaluate.max_new_tokens")


@pytest.mark.parametrize("context, times", [("fewshot", 9), ("random_letters", 9), ("zeroshot", 1), ("instruction", 1),
                                            ("instruction_shuffled", 1), ("document", 1), ("other_document", 1)])
def test_only_contexts_that_show_examples_are_counted_with_them(tmp_path, context, times):
    cfg = small_lm.tiny(tmp_path, "method=distill", "teacher.name=context_lm", f"teacher.context={context}",
                        f"teacher.instruction={'Say it.' * context.startswith('instruction')}",
                        "objective=[{name: topk}]", "task.tokenizer=some/where", "task.root=")
    lengths = data_of(cfg, Told(tokens=(30, 10))).lengths
    assert (lengths.context, lengths.item) == (40 * times, 40)


def test_a_language_model_inside_a_larger_one_is_counted(tmp_path):
    text = AutoConfig.from_pretrained(small_lm.lm("gemma3")).to_dict() | {"num_hidden_layers": 9, "layer_types": None}
    whole = Gemma3Config(text_config=text, vision_config={
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14})
    whole.save_pretrained(tmp_path / "model")
    assert not hasattr(whole, "num_hidden_layers")
    lm = models.language_model(str(tmp_path / "model"), "", "fp32", {}, layers=4)
    about = lm.model.config.get_text_config()
    assert len(about.layer_types) == about.num_hidden_layers == 4
    cfg = small_lm.tiny(tmp_path, f"student.model={tmp_path / 'model'}", f"task.tokenizer={small_lm.lm('gemma3')}",
                        family="gemma3")
    found = costs.of_run(cfg, data_of(cfg, Told()), {})
    whole = models.language_model(str(tmp_path / "model"), "", "fp32", {})
    assert found.parameters == sum(p.numel() for p in whole.parameters()) + found.trained  # of all nine


@pytest.mark.slow
def test_a_finished_run_of_full_fine_tuning_is_a_model(tmp_path):
    cfg = small_lm.tiny(tmp_path, "student.lora=false", "train.duration=1st", "optim.warmup=0st")
    small_lm.run_main(cfg)
    assert architectures.config_of(str(cfg.run_dir)).hidden_size == 32


def test_a_students_own_answers_are_as_long_as_they_may_be(tmp_path):
    cfg = small_lm.tiny(tmp_path, *TEACHER, "objective=[{name: topk}]", "teacher.targets=student",
                        "evaluate.max_new_tokens=40")
    data, split = data_of(cfg, Told()), small_lm.task().splits["train"]
    assert data.trained.widest == int(split.prompts.lengths.max()) + 40 and data.trained.answer == 40
    assert data.lengths.widest == int(split.lengths.max())  # those of validation stay the data's
    assert data.trained.context == pytest.approx(
        data.lengths.context - float(split.answers.lengths.double().mean()) + 40, rel=0.05)
