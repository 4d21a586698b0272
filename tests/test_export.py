"""Exports are the run's own model for whoever loads them: checked in a process without graft, or refused in a line."""

import json
import sys

import pytest

import export
from graft.config import load
from graft.errors import UserError
from graft.evaluation import exporting
from small import ROOT, run_main, tiny

pytestmark = pytest.mark.slow


def write(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
    export.main()


@pytest.mark.parametrize("words", [
    ["student.distilled=false"], ["student.distilled=true", "student.inference=cls"],
    ["student.distilled=true", "student.inference=avg"]])
def test_vision_students_load_in_plain_timm(words, tmp_path, monkeypatch, capsys):
    # `_same` compares logits in a process without graft; what differs leaves no folder
    run_main(tiny(tmp_path / "s/baseline", *words))
    write(monkeypatch, tmp_path / "s/baseline/seed0", "--to", "timm", "--out", tmp_path / "out")
    assert "in a process without graft" in capsys.readouterr().out
    about = json.loads((tmp_path / "out/config.json").read_text())
    assert about["label_names"] == [str(k) for k in range(10)]
    card = (tmp_path / "out/README.md").read_text()
    assert "largest difference of a logit is" in card and "digits (scikit-learn)" in card
    with pytest.raises(UserError, match="is not empty"):
        write(monkeypatch, tmp_path / "s/baseline/seed0", "--to", "timm", "--out", tmp_path / "out")


def test_a_network_without_an_image_size_loads_in_plain_timm(tmp_path, monkeypatch, capsys):
    run_main(load([ROOT / "configs/base/digits_cnn.yaml"], [
        "student.name=timm", "student.arch=resnet10t", "task.subset=64", "train.batch_size=32", "train.duration=1st",
        "optim.warmup=0st", "train.eval_every=0", "train.checkpoint_every=0", "train.tensorboard=false",
        "method=baseline"], output_dir=str(tmp_path / "s/cnn")))
    write(monkeypatch, tmp_path / "s/cnn/seed0", "--to", "timm", "--out", tmp_path / "out")
    assert "in a process without graft" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]["fixed_input_size"] is False


def test_the_reading_of_the_distillation_token_is_the_one_exported(tmp_path):
    """The weights as trained, read by its other head: a student that two tokens tell apart."""
    import torch

    from graft.config import parts
    from graft.evaluation import rebuild
    cfg = load([ROOT / "configs/base/digits_vit.yaml"], ["student.distilled=true", "student.inference=dist",
                                                         "student.depth=2", "method=baseline"], output_dir="x")
    import timm
    task = parts.build("tasks", cfg.task)
    student = rebuild.architecture(cfg.student, task).eval()
    for value in student.parameters():
        torch.nn.init.normal_(value, std=0.2, generator=torch.Generator().manual_seed(value.numel()))
    arch, options = exporting._as_timm(cfg, task)
    plain = timm.create_model(arch, **options).eval()
    plain.load_state_dict(exporting._one_head(cfg, student.model.state_dict()))
    images = task.splits["test"].images[:16].float() / 255
    with torch.no_grad():
        out = student(images)
        found = plain((images - student.mean) / student.std)
    assert torch.allclose(found, out.readings["dist"], atol=1e-4)
    assert not torch.allclose(found, out.readings["cls"], atol=1e-1)


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    run_main(tiny(tmp_path / "s/baseline", "student.stem=conv"))
    run = tmp_path / "s/baseline/seed0"
    for kind, said in {"timm": "try --to onnx", "hf": "expected timm or onnx"}.items():
        with pytest.raises(UserError, match=said):
            write(monkeypatch, run, "--to", kind, "--out", tmp_path / "out")
    if all(exporting.importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        write(monkeypatch, run, "--to", "onnx", "--out", tmp_path / "onnx")
        assert (tmp_path / "onnx/model.onnx").stat().st_size > 10_000
    else:
        with pytest.raises(UserError, match=r"pip install '.\[onnx\]'"):
            write(monkeypatch, run, "--to", "onnx", "--out", tmp_path / "onnx")
    assert not (tmp_path / "out").exists()


def test_other_outputs_are_no_export(tmp_path, monkeypatch):
    run_main(tiny(tmp_path / "s/baseline", "student.distilled=false"))
    own = exporting._one_head
    monkeypatch.setattr(exporting, "_one_head", lambda cfg, state: {k: v + 0.01 for k, v in own(cfg, state).items()})
    with pytest.raises(UserError, match="its logits differ by"):
        write(monkeypatch, tmp_path / "s/baseline/seed0", "--to", "timm", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_upload_is_one_line(tmp_path):
    class Hub:
        def create_repo(self, *_, **__):
            raise ConnectionError("no route\nto host")

    with pytest.raises(UserError, match="--push me/x: ConnectionError: no route to host; the folder") as error:
        exporting.push(tmp_path, "me/x", Hub)
    assert "\n" not in str(error.value)
