"""What was trained and what lies there now are tied together by digests: files, splits, configurations, scores."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import analyze
import analyze_locality
import eval_checkpoints
import eval_robustness
import predict
from graft import config
from graft.errors import UserError
from graft.evaluation import rebuild
from graft.runtime import checkpoint, digests
from graft.runtime.checkpoint import sha256
from graft.tasks import imagefolder
from small import run_main


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def old(file: Path) -> None:
    """As if it had last been written an hour ago."""
    os.utime(file, (time.time() - 3600,) * 2)


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(digests, "YOUNG", -60.0)  # ctime cannot be set back
    read = []
    monkeypatch.setattr(digests, "sha256", lambda file: read.append(file.name) or sha256(file))
    files = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for file in files:
        file.write_bytes(b"1" * 100)
        old(file)
    first = digests.of_files(files)
    assert first == [sha256(file) for file in files] and read == ["a.bin", "b.bin"]
    assert digests.of_files(files[::-1]) == first[::-1] and len(read) == 2
    before = files[0].stat()
    files[0].write_bytes(b"1" * 50 + b"2" + b"1" * 49)
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))  # size and mtime as they were
    assert digests.of_files(files) == [sha256(files[0]), first[1]] and read[2:] == ["a.bin"]


def test_young_files_and_damaged_memories_are_read_again(tmp_path, cache, monkeypatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"1")
    monkeypatch.setattr(digests, "YOUNG", 3600.0)  # longer than this test on any machine
    assert digests.of_files([file]) == [sha256(file)]
    assert not list(cache.glob("digests/*.json")), "changed a moment ago: it could change again within the clock's tick"
    monkeypatch.setattr(digests, "YOUNG", -60.0)
    digests.of_files([file])
    memory, = cache.glob("digests/*.json")
    for text in ("{", "[]", json.dumps({"a.bin": 3}), json.dumps({"a.bin": [1, 2]})):
        memory.write_text(text)
        assert digests.of_files([file]) == [sha256(file)]


# --------------------------------------------------------------------------------------------- images

BASE = """
task: {name: imagefolder, size: 8, channels: 1}
student: {name: vit, patch: 4, dim: 16, depth: 2, heads: 2, mlp_ratio: 2.0, drop_path: 0.0}
optim: {warmup: 1st}
train: {duration: 3st, batch_size: 8, eval_every: 0, checkpoint_every: 0, tensorboard: false, workers: 0}
evaluate: {topk: [1]}
"""
READERS = {"eval_checkpoints": eval_checkpoints, "eval_robustness": eval_robustness, "analyze": analyze,
           "analyze_locality": analyze_locality}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of images without a split of its own, and a run on it: `data`, `study/baseline/seed0`."""
    folder, draw = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "data/train" / label).mkdir(parents=True)
        for i in range(20):
            picture(folder / f"data/train/{label}/{i:03d}.png", draw)
    (folder / "base.yaml").write_text(BASE)
    run_main(config.load([folder / "base.yaml"], [f"task.root={folder / 'data'}"],
                         output_dir=str(folder / "study/baseline")))
    return folder


def picture(file: Path, draw: np.random.Generator) -> None:
    Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(file)


@pytest.fixture
def data(place, tmp_path) -> Path:
    """A copy of the images, to be changed."""
    return Path(shutil.copytree(place / "data", tmp_path / "data"))


def read(reader: str, place: Path, monkeypatch, *more: str) -> dict:
    """What one of the scripts writes about the run."""
    output = place / f"{reader}.json"
    which = ["--run", place / "study/baseline/seed0"] if reader == "analyze" else [
        "--base_dir", place / "study", "--conditions", "baseline"]
    small = ["--images", 4, "--cka_images", 4] if reader.startswith("analyze") else []
    monkeypatch.setattr(sys, "argv", [reader, *map(str, [*which, "--output", output, *small, *more])])
    READERS[reader].main()
    return json.loads(output.read_text())


def five_more(data: Path) -> None:
    for i in range(5):
        picture(data / f"train/cat/x{i}.png", np.random.default_rng(i))


def swap_contents(data: Path) -> None:
    """Every file gets its neighbour's pixels; names and sizes stay."""
    for label in ("cat", "dog"):
        files = sorted((data / "train" / label).iterdir())
        for one, other in zip(files[::2], files[1::2]):
            first = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(first)


CHANGES = {
    five_more: r"val data of 3 items, sha256 \w{12}, now 4 items.*test data of 8 items, .* now 9 items",
    swap_contents: r"\(val data of 3 items, sha256 \w{12}, now 3 items.*test data of 8",
    lambda data: (data / "train/cat").rename(data / "train/zebra"):
        r"class names 2 \(cat as number 1\), now 2 \(dog as number 1\);",
    lambda data: shutil.copytree(data / "train/cat", data / "train/emu"):
        r"class names 2 \(none as number 3\), now 3 \(emu as number 3\).*cannot read data with another number of",
}


@pytest.mark.parametrize("change", CHANGES, ids=["five more", "contents swapped", "class renamed", "class more"])
def test_changed_data_are_not_scored(place, data, monkeypatch, change):
    change(data)
    with pytest.raises(UserError, match=f"baseline/seed0: was trained on other data .*{CHANGES[change]}") as caught:
        read("eval_checkpoints", place, monkeypatch, "--task_root", str(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_compares_and_an_override_is_recorded(place, data, monkeypatch, capsys, reader):
    before = read(reader, place, monkeypatch)
    (data / "train/cat").rename(data / "train/zebra")
    with pytest.raises(UserError, match=r"was trained on other data \(class names 2 \(cat as number 1\), now 2 \(dog"):
        read(reader, place, monkeypatch, "--task_root", str(data))
    after = read(reader, place, monkeypatch, "--task_root", str(data), "--allow_other_data")
    entries = [found if reader == "analyze" else found["conditions"]["baseline"]["runs"][-1]
               for found in (before, after)]
    assert entries[0]["other_data"] == [] and entries[1]["other_data"][0].startswith("class names 2 (cat as")
    assert after["data"]["fingerprints"]["test"] != before["data"]["fingerprints"]["test"]
    assert "note: " in capsys.readouterr().out


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", ["heads", "split_seed", "cut short", "gone"])
def test_a_changed_config_beside_the_checkpoint_changes_nothing(place, tmp_path, monkeypatch, reader, change):
    shutil.copytree(place / "study", tmp_path / "study")
    before, file = read(reader, tmp_path, monkeypatch), tmp_path / "study/baseline/seed0/config.yaml"
    text = file.read_text()
    changed = {"heads": text.replace("heads: 2", "heads: 4"), "cut short": text[:200], "gone": "",
               "split_seed": text.replace("split_seed: 0", "split_seed: 7")}[change]
    assert changed != text
    file.write_text(changed)
    if change == "gone":
        file.unlink()
    for kept in (tmp_path / "study").glob("*/*/eval/*"):
        kept.unlink()
    assert read(reader, tmp_path, monkeypatch) == before


def test_a_prediction_needs_the_folder_alone(place, tmp_path, monkeypatch):
    """No data, no config.yaml, whatever the folder is called and whoever lies beside it."""
    shutil.copytree(place / "study/baseline", tmp_path / "Moved Elsewhere")
    shutil.copytree(tmp_path / "Moved Elsewhere/seed0", tmp_path / "Moved Elsewhere/seed0_old")
    (tmp_path / "Moved Elsewhere/seed0/checkpoint-3/model.safetensors").write_bytes(b"")
    (tmp_path / "Moved Elsewhere/seed0_old/config.yaml").unlink()
    monkeypatch.setattr(imagefolder, "build", None)
    image = str(place / "data/train/dog/000.png")
    said = []
    for run in (place / "study/baseline/seed0", tmp_path / "Moved Elsewhere/seed0_old"):
        monkeypatch.setattr(sys, "argv", ["predict", image, "--run", str(run), "--out", str(tmp_path / "out")])
        predict.main()
        row = json.loads((tmp_path / "out/predictions.jsonl").read_text())
        said.append((row["class"], row["confidence"], row["top"]))
        assert row["run"] == str(run)
    assert said[0] == said[1] and {top["class"] for top in said[0][2]} == {"cat", "dog"}


def test_a_checkpoint_without_facts_is_one_line(place, tmp_path):
    run = Path(shutil.copytree(place / "study/baseline/seed0", tmp_path / "seed0"))
    info = {key: value for key, value in checkpoint.info_of(run / "checkpoint-3").items() if key != "data"}
    rewrite(run / "checkpoint-3", info)
    with pytest.raises(UserError, match="checkpoint-3: was written before checkpoints stored what data"):
        rebuild.trained(run)
    (run / "checkpoint-3/trainer.json").write_text(json.dumps({**info, "seed": 1}))
    with pytest.raises(UserError, match=r"trainer\.json: content differs from its sha256"):
        rebuild.trained(run)
    with pytest.raises(UserError, match="nowhere: is no run's folder"):
        rebuild.trained(tmp_path / "nowhere")


def rewrite(path: Path, info: dict) -> None:
    """Another trainer.json, with the manifest to it."""
    (path / "trainer.json").write_text(json.dumps(info))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["trainer.json"] = {"size": (path / "trainer.json").stat().st_size, "sha256": sha256(path / "trainer.json")}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_training_goes_on_only_with_its_data(place, data, tmp_path, capsys):
    def run(duration: str = "3st") -> None:
        run_main(config.load([place / "base.yaml"], [f"task.root={data}", f"train.duration={duration}"],
                             output_dir=str(tmp_path / "arm")))

    test = data / "test/cat"
    test.mkdir(parents=True)
    (data / "test/dog").mkdir()
    for label in ("cat", "dog"):
        picture(data / f"test/{label}/0.png", np.random.default_rng(9))
    run()
    picture(test / "1.png", np.random.default_rng(10))
    at = tmp_path / "arm/seed0/checkpoint-3"
    info = json.loads((at / "trainer.json").read_text())
    del info["config"]["train"]["min_delta"]  # a key that is younger than the run
    rewrite(at, info | {"config_sha256": "of then"})
    run()  # finished already; test images are not trained on
    assert "note: since the last checkpoint another test data of 2 items" in capsys.readouterr().out
    picture(data / "train/cat/000.png", np.random.default_rng(11))
    with pytest.raises(UserError, match=r"was made with another configuration \(train.duration: 3st -> 4st\); with "
                                        r"other data \((train|val) data of"):
        run("4st")


def test_training_goes_on_only_with_its_teacher(place, tmp_path):
    """The teacher's folder is the same one, and so is the configuration; what lies in it is another run."""
    def train(arm: str, *more: str) -> Path:
        cfg = config.load([place / "base.yaml"], [f"task.root={place / 'data'}", *more], output_dir=str(tmp_path / arm))
        run_main(cfg)
        return cfg.run_dir

    def distill() -> Path:
        return train("arm", "method=distill", f"teacher={{name: run, path: {tmp_path / 'teacher'}}}",
                     "objective=[{name: ce}, {name: kd}]")

    teacher = train("teacher")
    arm = distill()
    task = rebuild.Tasks(torch.device("cpu"))
    assert rebuild.teacher(rebuild.trained(arm), task(rebuild.trained(arm).config), False).num_classes == 2
    shutil.rmtree(teacher)
    train("teacher", "optim.lr=0.02")
    with pytest.raises(UserError, match=r"checkpoint-3: was made with another teacher \(\w{64}, now \w{64}\)"):
        distill()
    with pytest.raises(UserError, match=r"arm/seed0: learned from another teacher than run .*/teacher is now"):
        rebuild.teacher(rebuild.trained(arm), task(rebuild.trained(arm).config), False)
