import collections
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import signal
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, MNIST
from torchvision.transforms import v2

from graft.errors import UserError
from graft.tasks import _cache, _images, _parquet, cifar10, cifar100, digits, imagefolder, mnist, parquet_images
from graft.tasks._files import parquet_files
from graft.tasks._task import ResidentSplit, StreamedSplit, fingerprint, stratified_pick, stratified_split
from small import one_line

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GRAFT_DATA", raising=False)


def encode(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def picture(i, size=32):
    return np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)


def write_parquet(path, encoded, labels, column="img", label="label"):
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({column: pa.array(structs, kind), label: labels}), path)
    return path


def write_cifar(folder, train=40, test=20, kind="PNG", **options):
    for split, n, first in (("train", train, 0), ("test", test, 1000)):
        write_parquet(folder / f"{split}.parquet", [encode(picture(first + i), kind, **options) for i in range(n)],
                      [i % 10 for i in range(n)])
    return str(folder)


# ------------------------------------------------------------------------------------------ splitting

def test_stratified_counts_are_exact_by_largest_remainder():
    labels = np.repeat([0, 1, 2], [50, 33, 17])
    # 10 of 100 are 5.0, 3.3 and 1.7 images of the classes: 5, 3, 1 and the tenth goes to the last
    assert np.bincount(labels[stratified_pick(labels, 10, 0)]).tolist() == [5, 3, 2]
    for count in range(101):
        picked = np.bincount(labels[stratified_pick(labels, count, 1)], minlength=3)
        assert picked.sum() == count
        assert (abs(picked - count * np.array([0.5, 0.33, 0.17])) < 1).all()


def test_split_is_disjoint_complete_sorted_and_a_function_of_its_seed():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    torch.manual_seed(1)
    train, val = stratified_split(labels, 0.1, 3)
    assert len(val) == 50 and np.array_equal(np.sort(np.r_[train, val]), np.arange(500))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    torch.manual_seed(2)
    assert np.array_equal(val, stratified_split(labels, 0.1, 3)[1])
    assert not np.array_equal(val, stratified_split(labels, 0.1, 4)[1])
    assert len(stratified_split(labels, 0.0, 3)[1]) == 0


def test_split_does_not_depend_on_how_classes_are_interleaved():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    grouped = np.argsort(labels, kind="stable")  # the same samples, class after class
    picked = stratified_pick(labels, 37, 9)
    assert set(grouped[stratified_pick(labels[grouped], 37, 9)]) == set(picked)


def test_fingerprint_is_of_content():
    images, labels = np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2), np.array([0, 1, 2, 3])
    first = fingerprint(images, labels)
    expected = hashlib.sha256(b"(4, 3, 2, 2) |u1 " + bytes(range(48)) + struct.pack("<4q", 0, 1, 2, 3)).hexdigest()
    assert first == expected == fingerprint(torch.from_numpy(images.copy()), torch.from_numpy(labels))
    flipped = images.copy()
    flipped[2, 1, 0, 1] ^= 1
    assert len({first, fingerprint(flipped, labels), fingerprint(images, labels[::-1]),
                fingerprint(images.reshape(4, 3, 4, 1), labels)}) == 4


# -------------------------------------------------------------------------------------------- batches

def decode_index(i):
    """An image that shows its own index."""
    if i == 13:
        raise UserError("toy train image 13 (13.png): cannot be decoded")
    return np.full((1, 2, 2), i, np.uint8)


ORDER = [torch.tensor(x) for x in ([5, 0, 5], [7], [2, 9, 1, 4], [11, 3], [8, 6])]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streamed_batches_come_in_the_order_given(workers):
    split = StreamedSplit(decode_index, torch.arange(20) * 10).to("cpu", workers=workers)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    outer = []
    for images, labels in split.batches(ORDER):
        outer.append((images[:, 0, 0, 0].tolist(), labels.tolist()))
        if len(outer) == 2:  # a pass within a pass, and one that is left early
            next(split.batches(ORDER))
            inner = [labels.tolist() for _, labels in split.batches(ORDER[::-1])]
    assert outer == [(x.tolist(), (10 * x).tolist()) for x in ORDER]
    assert inner == [(10 * x).tolist() for x in ORDER[::-1]]
    with pytest.raises(UserError, match=r"^toy train image 13 \(13.png\): cannot be decoded$"):
        list(split.batches([torch.tensor([1]), torch.tensor([12, 13])]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_workers_outlive_the_signals_that_a_scheduler_sends_to_all_processes(number):
    split = StreamedSplit(decode_index, torch.arange(20)).to("cpu", workers=1)
    batches = split.batches(ORDER * 8)
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
    assert len(list(batches)) == 8 * len(ORDER) - 1
    for worker in multiprocessing.active_children():
        worker.join(600)
    assert not multiprocessing.active_children()


def test_resident_batches_are_the_rows_asked_for():
    images = torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    split = ResidentSplit(images, torch.arange(20) * 10).to("cpu")
    assert len(split) == 20 and split.resident
    for x, (batch, labels) in zip(ORDER, split.batches(ORDER), strict=True):
        assert torch.equal(batch, images[x]) and labels.tolist() == (10 * x).tolist()


def test_moving_a_split_changes_it_in_place_and_keeps_its_workers():
    streamed = StreamedSplit(decode_index, torch.arange(3), workers=2)
    assert streamed.to("meta") is streamed and (streamed.device.type, streamed.workers) == ("meta", 2)
    assert streamed.to("cpu", workers=5).workers == 5
    resident = ResidentSplit(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3))
    assert resident.to("meta") is resident
    assert (resident.images.device.type, resident.labels.device.type) == ("meta", "cpu")


# --------------------------------------------------------------------------------------------- digits

def test_digits_facts():
    task = digits.build()
    assert (task.num_classes, task.channels, task.size, task.data_id) == (10, 1, 8, "digits (scikit-learn)")
    assert [len(task.splits[split]) for split in SPLITS] == [1293, 144, 360]
    labels = torch.cat([task.splits[split].labels for split in SPLITS])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    original = load_digits()
    rows = collections.Counter(np.rint(x * 255 / 16).astype(np.uint8).tobytes() for x in original.images)
    assert rows == collections.Counter(x.numpy().tobytes() for split in SPLITS for x in task.splits[split].images)
    train = task.splits["train"].images.double() / 255
    assert task.mean == pytest.approx([train.mean().item()])
    assert task.std == pytest.approx([train.std(correction=0).item()])


def test_digits_test_split_stays_while_the_others_change():
    first, other, small = digits.build(), digits.build(split_seed=1), digits.build(subset=100)
    for task in (other, small):
        assert torch.equal(first.splits["test"].images, task.splits["test"].images)
        assert task.fingerprint != first.fingerprint
    assert first.fingerprint == digits.build().fingerprint
    assert not torch.equal(first.splits["val"].images, other.splits["val"].images)
    assert torch.equal(first.splits["val"].images, small.splits["val"].images)
    assert len(small.splits["train"]) == 100
    assert (small.splits["train"].labels.bincount() - 10).abs().max() <= 1
    assert len(digits.build(val_fraction=0.0).splits["val"]) == 0
    assert "1293 training images, got 1294" in one_line(digits.build, subset=1294)


# -------------------------------------------------------------------------------------------- parquet

def test_parquet_pixels_labels_and_splits(tmp_path):
    task = cifar10.build(root=write_cifar(tmp_path), val_fraction=0.25)
    assert task.data_id == "cifar10 (parquet, PNG, lossless, train 40 of 50,000 rows, test 20 of 10,000 rows)"
    assert task.classes[3] == "cat" and task.mean[0] == 0.4914 and (task.channels, task.size) == (3, 32)
    assert [len(task.splits[split]) for split in SPLITS] == [30, 10, 20]
    for i in range(20):
        assert np.array_equal(task.splits["test"].images[i], picture(1000 + i).transpose(2, 0, 1))
    assert task.splits["test"].labels.tolist() == [i % 10 for i in range(20)]
    index = stratified_split(np.arange(40) % 10, 0.25, 0)[0]
    assert task.splits["train"].labels.tolist() == (index % 10).tolist()
    assert np.array_equal(task.splits["train"].images[7], picture(index[7]).transpose(2, 0, 1))


def test_parquet_subfolder_parts_and_data_folder_variable(tmp_path, monkeypatch):
    whole = cifar10.build(root=write_cifar(tmp_path / "whole"))
    folder = tmp_path / "data" / "cifar10" / "plain_text"
    for part, rows in enumerate((range(0, 15), range(15, 40))):
        write_parquet(folder / f"train-0000{part}-of-00002.parquet", [encode(picture(i)) for i in rows],
                      [i % 10 for i in rows])
    write_parquet(folder / "test-00000-of-00001.parquet", [encode(picture(1000 + i)) for i in range(20)],
                  [i % 10 for i in range(20)])
    monkeypatch.setenv("GRAFT_DATA", str(tmp_path / "data"))
    assert cifar10.build().fingerprint == whole.fingerprint


@pytest.mark.parametrize(("names", "says"), [
    (["train-0", "train-1"], None), (["train-1", "train-2"], None),
    (["train-00001-of-00002", "train-00000-of-00002"], None),
    (["train", "train_old_backup"], None), (["train-0", "train-2"], "train-1.parquet is missing"),
    (["train-2", "train-3"], "train-1.parquet is missing"), (["train-0", "train"], "train.parquet and train-0.parquet"),
    (["train-00000-of-00003", "train-00002-of-00003"], "train-00001-of-00003.parquet is missing; expected all 3"),
    (["train-0", "train-00000-of-00001"], "more than once: "),
])
def test_the_files_of_a_split_are_its_own_and_all_of_them(tmp_path, names, says):
    for name in names:
        (tmp_path / f"{name}.parquet").touch()
    if says:
        assert says in one_line(lambda: parquet_files(tmp_path, "train"))
    else:
        want = sorted(name for name in names if "old" not in name)
        assert [path.stem for path in parquet_files(tmp_path, "train")] == want


def test_hub_reads_the_pinned_snapshot(tmp_path, monkeypatch):
    root, revision, asked = write_cifar(tmp_path), "0123456789" * 4, []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kw: asked.append((args, kw)) or root)
    task = cifar10.build(source="hub", revision=revision)
    assert task.data_id.startswith("cifar10 (uoft-cs/cifar10@0123456, PNG, lossless")
    assert asked[0][0] == ("uoft-cs/cifar10",) and asked[0][1]["revision"] == revision
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kw: 1 / 0)
    assert "cannot get uoft-cs/cifar10@0123456" in one_line(cifar10.build, source="hub", revision=revision)


def test_mnist_parquet(tmp_path):
    pixels = [picture(i, 28)[:, :, 0] for i in range(20)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encode(x) for x in pixels], [i % 10 for i in range(20)], "image")
    task = mnist.build(root=str(tmp_path))
    assert (task.channels, task.size, task.mean, task.std) == (1, 28, [0.1307], [0.3081])
    assert np.array_equal(task.splits["test"].images[:, 0], np.stack(pixels))


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 95, 100])
def test_jpeg_quality_is_recovered_and_called_lossy(tmp_path, quality):
    with Image.open(io.BytesIO(encode(picture(0), "JPEG", quality=quality))) as image:
        assert _images.jpeg_quality(tuple(image.quantization[0])) == quality
    if quality == 75:
        task = cifar10.build(root=write_cifar(tmp_path, kind="JPEG", quality=quality))
        assert task.data_id.startswith("cifar10 (parquet, JPEG q75, lossy, ")


def test_mixed_encodings_are_described():
    assert _images.describe(["PNG", "JPEG q75", "PNG"]) == "JPEG q75 + PNG, lossy"
    assert _images.describe([f"JPEG q{q}" for q in (60, 70, 80, 90)]) == "4 encodings, JPEG q60 to JPEG q90, lossy"
    assert _images.describe(["WEBP"]) == "WEBP"


def test_cache_is_used_and_renewed(tmp_path, monkeypatch):
    root = write_cifar(tmp_path)
    first = cifar10.build(root=root)
    with monkeypatch.context() as patch:
        patch.setattr(_parquet, "_decode", None)  # decoding again would fail
        again = cifar10.build(root=root)
    assert (again.fingerprint, again.data_id) == (first.fingerprint, first.data_id)
    (broken,) = (tmp_path / "cache").glob("decoded/cifar10-train-*/images.npy")
    broken.write_bytes(broken.read_bytes()[:500])
    assert cifar10.build(root=root).fingerprint == first.fingerprint
    write_parquet(tmp_path / "test.parquet", [encode(picture(5000 + i)) for i in range(20)], [0] * 20)
    assert cifar10.build(root=root).fingerprint != first.fingerprint


def toy(file, value, encoding="PNG"):
    return _cache.arrays("toy", [file], "3x8", lambda: (np.full(3, value), encoding))


def test_interrupted_cache_entry_is_invisible(tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_bytes(b"1")
    for broken in (_cache.os, "replace"), (_cache.np, "save"):
        with monkeypatch.context() as patch:
            patch.setattr(*broken, lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            assert "cannot keep decoded images (No space left" in one_line(lambda: toy(file, 0), exit_code=74)
    assert not list((tmp_path / "cache").glob("decoded/*.partial"))
    images, encoding = toy(file, 1)
    assert images.tolist() == [1, 1, 1] and encoding == "PNG"
    before = file.stat()
    file.write_bytes(b"2")  # other contents of the same size, and the clock set back
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert toy(file, 2)[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("damage", [
    lambda entry: (entry / "images.npy").write_bytes((entry / "images.npy").read_bytes()[:-8] + bytes(8)),
    lambda entry: (entry / "images.npy").write_bytes((entry / "images.npy").read_bytes()[:-4]),
    lambda entry: (entry / "manifest.json").write_text((entry / "manifest.json").read_text().replace("PNG", "PNH")),
    lambda entry: (entry / "manifest.json").write_text((entry / "manifest.json").read_text()[:20]),
    lambda entry: (entry / "manifest.json").write_text("[]"),
    lambda entry: (entry / "manifest.json").write_bytes(b"\xff"),
    lambda entry: (entry / "manifest.json").unlink(),
])
def test_damaged_cache_entry_is_made_anew(tmp_path, damage):
    file = tmp_path / "x"
    file.write_bytes(b"1")
    toy(file, 7)
    assert toy(file, 8)[0].tolist() == [7, 7, 7], "it was kept"
    (entry,) = (tmp_path / "cache").glob("decoded/toy-*[!k]")
    damage(entry)
    assert toy(file, 8)[0].tolist() == [8, 8, 8] and toy(file, 9)[1] == "PNG"


def test_of_two_who_decode_one_does_and_the_other_waits(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    done = []

    def decode():
        time.sleep(0.1)
        done.append(1)
        return np.ones(3), "PNG"

    with ThreadPoolExecutor() as pool:
        both = [pool.submit(_cache.arrays, "toy", [tmp_path / "x"], "3", decode) for _ in range(2)]
    assert [future.result()[0].tolist() for future in both] == [[1, 1, 1]] * 2 and done == [1]


# ---------------------------------------------------------------------------- what is wrong with the data

def test_missing_data_says_where_what_and_how(tmp_path):
    message = one_line(cifar10.build, root=str(tmp_path / "nowhere"))
    for part in (str(tmp_path / "nowhere"), "train.parquet or its shards train-00000-of-", "cifar-10-batches-py",
                 "hf download uoft-cs/cifar10 --repo-type dataset"):
        assert part in message
    write_parquet(tmp_path / "train.parquet", [encode(picture(0))], [0])
    assert "no test data" in one_line(cifar10.build, root=str(tmp_path))
    assert "data/mnist" in one_line(mnist.build)
    assert "40 hex digits, got 'main'" in one_line(cifar10.build, source="hub", revision="main")


@pytest.mark.parametrize(("damage", "expected"), [
    (lambda row: row[:200], "cannot be decoded"),
    (lambda row: b"not an image", "is not an image (PNG, JPEG, WEBP, BMP, GIF, TIFF)"),
    (lambda row: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "is not an image"),  # would start Ghostscript
    (lambda row: b"", "has no bytes"),
    (lambda row: encode(picture(0, 16)), "expected 32x32 pixels, got 16x16"),
    (lambda row: encode(np.zeros((32, 32), np.uint16)), "expected 8 bits per channel"),
])
def test_bad_image_is_named(tmp_path, damage, expected):
    root = write_cifar(tmp_path)
    rows = [encode(picture(i)) for i in range(20)]
    rows[17] = damage(rows[17])
    write_parquet(tmp_path / "test.parquet", rows, [0] * 20)
    message = one_line(cifar10.build, root=root)
    assert message.startswith(f"cifar10 test image 17 (17.png in {tmp_path / 'test.parquet'}): ")
    assert expected in message


def test_bad_tables_are_named(tmp_path):
    root, path = write_cifar(tmp_path), tmp_path / "test.parquet"
    write_parquet(path, [encode(picture(i)) for i in range(3)], [0, 10, 1])
    assert f"{path}: row 1: label 10, expected 0 to 9" in one_line(cifar10.build, root=root)
    write_parquet(path, [encode(picture(0))], [None])
    assert "expected a column label of integers or text" in one_line(cifar10.build, root=root)
    write_parquet(path, [encode(picture(0)), encode(picture(1))], [None, 1])
    assert "1 labels are missing" in one_line(cifar10.build, root=root)
    write_parquet(path, [encode(picture(0))], [0], column="photo")
    assert "expected a column img or image" in one_line(cifar10.build, root=root)
    write_parquet(path, [], pa.array([], pa.int64()))
    assert "no rows" in one_line(cifar10.build, root=root)
    path.write_bytes(b"")
    assert f"{path}: not a readable parquet file" in one_line(cifar10.build, root=root)


# ------------------------------------------------------------------------------ your own parquet files

def test_published_sets_are_settings_of_parquet_images(tmp_path):
    root = write_cifar(tmp_path)
    published = cifar10.build(root=root, val_fraction=0.25)
    own = parquet_images.build(root=root, image="img", val_fraction=0.25)
    assert own.fingerprints == published.fingerprints
    assert (own.classes, own.size, own.channels) == ([str(k) for k in range(10)], 32, 3)
    assert own.data_id == f"parquet_images ({tmp_path.name}, 10 classes, PNG, lossless)"
    values = own.splits["train"].images.double() / 255
    assert own.mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert own.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist())


def test_cifar100_reads_fine_labels(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encode(picture(i)) for i in range(100)], list(range(100)),
                      label="fine_label")
    task = cifar100.build(root=str(tmp_path), val_fraction=0.0)
    assert len(task.classes) == 100 and task.classes == sorted(set(task.classes))
    assert task.splits["test"].labels.tolist() == list(range(100))
    assert "fine_label" in one_line(cifar100.build, root=write_cifar(tmp_path / "other"))


def test_parquet_images_of_other_sizes_text_labels_bytes_and_three_splits(tmp_path):
    shapes = [(20, 30, 3), (8, 8, 3), (16, 24, 3), (9, 40, 3)]
    sizes = [np.random.default_rng(i).integers(0, 256, shape, np.uint8) for i, shape in enumerate(shapes)]
    labels = ["dog", "cat", "dog", "cat"]
    for split in ("train", "validation", "test"):
        table = {"photo": pa.array([encode(x) for x in sizes], pa.binary()), "animal": labels}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    (tmp_path / "train_old.parquet").write_bytes(b"no split's file")
    build = lambda **more: parquet_images.build(root=str(tmp_path), image="photo", label="animal", **more)  # noqa: E731
    task = build(size=8)
    assert task.classes == ["cat", "dog"] and [len(task.splits[split]) for split in SPLITS] == [4, 4, 4]
    assert task.splits["val"].labels.tolist() == [1, 0, 1, 0]
    for i, pixels in enumerate(sizes):
        Image.fromarray(pixels).save(tmp_path / "one.png")
        want = _images.read_square(tmp_path / "one.png", 3, 8, "x")
        assert np.array_equal(task.splits["train"].images[i], want)
    assert build(size=8, channels=1).splits["train"].images.shape == (4, 1, 8, 8)
    assert "row 0: 30x20 pixels; set task.size" in one_line(build)
    assert "expected a column photos, bytes or struct" in one_line(
        parquet_images.build, root=str(tmp_path), image="photos", label="animal", size=8)
    pq.write_table(pa.table({**table, "animal": ["dog", "cat", "cow", "cat"]}), tmp_path / "test.parquet")
    assert "row 2: label cow, expected one of cat, dog" in one_line(build, size=8)
    (tmp_path / "val.parquet").write_bytes(b"")
    assert "val and validation are one split" in one_line(build, size=8)


def test_parquet_images_declare_classes_and_hold_out_a_test_split(tmp_path):
    declared = json.dumps({"info": {"features": {"label": {"names": ["ant", "bee", "cow"]}}}})
    table = pa.table({"image": pa.array([encode(picture(i, 8)) for i in range(20)], pa.binary()),
                      "label": [i % 2 for i in range(20)]})
    pq.write_table(table.replace_schema_metadata({"huggingface": declared}), tmp_path / "train.parquet")
    task = parquet_images.build(root=str(tmp_path))
    assert task.classes == ["ant", "bee", "cow"] and len(task.splits["test"]) == 4
    assert task.notes == ("no training images of 1 of 3 classes: cow", "no validation images of 1 of 3 classes: cow",
                          "no test images of 1 of 3 classes: cow")
    again = parquet_images.build(root=str(tmp_path), split_seed=1)
    assert again.fingerprints["test"] == task.fingerprints["test"]
    assert "no data in" in one_line(parquet_images.build, root=str(tmp_path / "nowhere"))


# ---------------------------------------------------------------------------------------- torchvision

class Flag:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_cifar_pickle_with_wrong_md5_is_refused_unopened(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps(Flag(tmp_path / "ran")))
    message = one_line(cifar10.build, root=str(tmp_path))
    assert "data_batch_1 is damaged" in message and "c99cafc152244af753f735de768cd75f" in message
    assert not (tmp_path / "ran").exists()


def test_mnist_archive_with_wrong_md5_is_refused(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    assert "train-images-idx3-ubyte.gz is missing" in one_line(mnist.build, root=str(tmp_path))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"other")
    assert "train-images-idx3-ubyte.gz is damaged" in one_line(mnist.build, root=str(tmp_path))


def test_torchvision_cifar_is_read_like_the_parquet_copy(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(indices, first):
        data = np.stack([picture(first + i).transpose(2, 0, 1).ravel() for i in indices])
        return {"data": data, "labels": [i % 10 for i in indices]}

    monkeypatch.setattr(CIFAR10, "train_list", [["a", write("a", batch(range(25), 0))],
                                                ["b", write("b", batch(range(25, 40), 0))]])
    monkeypatch.setattr(CIFAR10, "test_list", [["c", write("c", batch(range(20), 1000))]])
    meta = {"label_names": cifar10.NAMES}
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "m", "key": "label_names", "md5": write("m", meta)})
    task = cifar10.build(root=str(tmp_path))
    assert task.data_id == "cifar10 (torchvision)"
    assert task.fingerprint == cifar10.build(root=write_cifar(tmp_path / "parquet")).fingerprint


def test_torchvision_mnist_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.stack([picture(i, 28)[:, :, 0] for i in range(20)])
    resources = []
    for name, header, data in [("images-idx3", [2051, 20, 28, 28], pixels), ("labels-idx1", [2049, 20], range(20))]:
        for split in ("train", "t10k"):
            packed = gzip.compress(struct.pack(f">{len(header)}i", *header) + bytes(
                data.tobytes() if name[0] == "i" else [i % 10 for i in data]))
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(packed)
            resources.append((f"{split}-{name}-ubyte.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    task = mnist.build(root=str(tmp_path))
    assert np.array_equal(task.splits["test"].images[:, 0], pixels)
    assert task.splits["test"].labels.tolist() == [i % 10 for i in range(20)]


# ---------------------------------------------------------------------------------------- imagefolder

def write_folder(folder, split="train", per_class=10, classes=("bee", "ant", "cow")):
    for label, name in enumerate(classes):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = np.full((24, 48, 3), 40 * label, np.uint8)
            pixels[:, :6] = pixels[:, -6:] = 255  # cut off by the centre crop, and out of the filter's reach
            Image.fromarray(pixels).save(folder / split / name / f"{i:02d}.png")
    return folder


def test_imagefolder_streams_and_resides_alike(tmp_path):
    root = str(write_folder(tmp_path))
    streamed, resident = imagefolder.build(root=root, size=12), imagefolder.build(root=root, size=12, resident=True)
    assert streamed.classes == ["ant", "bee", "cow"] and "test: 20% of train/" in streamed.data_id
    assert streamed.fingerprint == resident.fingerprint
    assert [len(streamed.splits[split]) for split in SPLITS] == [22, 2, 6]
    for split in SPLITS:
        order = [torch.arange(len(streamed.splits[split])).flip(0)]
        (a, labels_a), (b, labels_b) = (next(task.splits[split].batches(order)) for task in (streamed, resident))
        assert torch.equal(a, b) and torch.equal(labels_a, labels_b)
        value = torch.tensor([40, 0, 80], dtype=torch.uint8)[labels_a]  # of ant, bee, cow
        assert torch.equal(a, value[:, None, None, None].expand(-1, 3, 12, 12))
    paths = [set(streamed.splits[split].decode.paths) for split in SPLITS]
    assert len(set.union(*paths)) == 30 == sum(map(len, paths))


def test_imagefolder_own_val_and_test_folders_grey_and_subset(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, "val", 2)
    write_folder(tmp_path, "test", 3, ("cow", "ant"))
    task = imagefolder.build(root=str(tmp_path), size=8, channels=1, subset=9)
    assert [len(task.splits[split]) for split in SPLITS] == [9, 6, 6]
    assert task.splits["test"].labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert task.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    images, _ = next(task.splits["val"].batches([torch.arange(6)]))
    assert images.shape == (6, 1, 8, 8) and len(task.mean) == 1


def test_imagefolder_resizes_and_crops_like_torchvision(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    oracle = v2.Compose([v2.Resize(16, v2.InterpolationMode.BICUBIC), v2.CenterCrop(16), v2.PILToTensor()])
    expected = oracle(Image.fromarray(pixels[:, 1:-1])).int()  # 80 is not a multiple of 3, 78 is
    image = imagefolder.Decode("x", [tmp_path / "noise.png"], 16, 3)(0)
    assert image.shape == (3, 16, 16) and (torch.from_numpy(image.copy()).int() - expected).abs().max() <= 1


def test_imagefolder_errors(tmp_path):
    assert "expected train/<class>" in one_line(imagefolder.build, root=str(tmp_path))
    write_folder(tmp_path, classes=("ant",))
    assert "at least 2 classes, got 1" in one_line(imagefolder.build, root=str(tmp_path))
    (tmp_path / "train" / "empty").mkdir()
    assert "empty: no images" in one_line(imagefolder.build, root=str(tmp_path))
    (tmp_path / "train" / "empty").rmdir()
    write_folder(tmp_path)
    assert "must be 1 or 3, got 2" in one_line(imagefolder.build, root=str(tmp_path), channels=2)
    task = imagefolder.build(root=str(tmp_path), size=8)
    decode = task.splits["train"].decode
    decode.paths[4].write_bytes(decode.paths[4].read_bytes()[:60])
    message = one_line(lambda: list(task.splits["train"].batches([torch.arange(8)])))
    assert message.startswith(f"imagefolder train image 4 ({decode.paths[4]}): ")
    (tmp_path / "test").mkdir()
    assert "test: no images" in one_line(imagefolder.build, root=str(tmp_path))
    (tmp_path / "test" / "dog").mkdir()
    assert "class dog is not in train/" in one_line(imagefolder.build, root=str(tmp_path))


def test_imagefolder_fingerprint_sees_contents(tmp_path):
    root, train = str(write_folder(tmp_path)), tmp_path / "train"
    build = lambda **arguments: imagefolder.build(root=root, **{"size": 12, **arguments}).fingerprints  # noqa: E731
    first = build()
    assert first != build(size=8) and first != build(channels=1)
    assert first == build()
    # the pixels of two files of one size exchanged, with their times
    one, other = train / "ant" / "00.png", train / "ant" / "01.png"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for file, own in zip((one, other), pixels):
        Image.fromarray(own).save(file)
    first, stat = build(), one.stat()
    contents = one.read_bytes(), other.read_bytes()
    assert len(contents[0]) == len(contents[1])
    for file, own in zip((one, other), reversed(contents)):
        file.write_bytes(own)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = build()
    assert second != first
    # a split that is not touched keeps its own
    write_folder(tmp_path, "test", 2)
    third = build()
    Image.fromarray(pixels[0]).save(tmp_path / "test" / "ant" / "00.png")
    fourth = build()
    assert third["train"] == fourth["train"] and third["val"] == fourth["val"] and third["test"] != fourth["test"]


def test_imagefolder_takes_subfolders_and_counts_what_it_leaves_out(tmp_path):
    write_folder(tmp_path, per_class=10)
    ant = tmp_path / "train" / "ant"
    (ant / "more" / "still").mkdir(parents=True)
    (ant / "more" / "00.png").write_bytes((ant / "00.png").read_bytes())
    Image.new("RGB", (24, 24)).save(ant / "more" / "still" / "x.GIF", "GIF")
    Image.new("RGB", (24, 24)).save(ant / "y.tiff")
    (ant / "more" / "again").symlink_to(ant)  # a circle
    (ant / "notes.txt").write_text("")
    (ant / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "loose.png").write_bytes(b"")
    task = imagefolder.build(root=str(tmp_path), size=8)
    assert sum(len(task.splits[split]) for split in SPLITS) == 33
    assert task.notes == ("train/: 2 of 33 images lie in subfolders of their class",
                          "train/: left out 2 files (1 in no class folder): 1 .png, 1 .txt")
    (ant / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"zero\.png: expected an image file, got a pipe, a device or a folder"):
        imagefolder.build(root=str(tmp_path), size=8)


def test_a_class_that_a_split_has_no_images_of_is_named(tmp_path):
    write_folder(tmp_path, classes=("rich",), per_class=40)
    write_folder(tmp_path, classes=tuple("abcdefg"), per_class=1)
    task = imagefolder.build(root=str(tmp_path), size=8)
    counts = torch.bincount(task.splits["train"].labels, minlength=8)
    absent = [name for name, n in zip(task.classes, counts) if n == 0]
    assert absent and task.notes[0] == f"no training images of {len(absent)} of 8 classes: {', '.join(absent)}"
    assert digits.build().notes == ()
    assert digits.build(subset=3).notes[0].startswith("no training images of 7 of 10 classes: ")


def test_damaged_test_image_is_named_before_training(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, "test", 2)
    damaged = tmp_path / "test" / "cow" / "01.png"
    whole = damaged.read_bytes()
    for content in (b"", whole[:-30]):
        damaged.write_bytes(content)
        assert one_line(imagefolder.build, root=str(tmp_path), size=8).startswith(
            f"imagefolder test image 5 ({damaged}): ")
    damaged.write_bytes(whole)
    imagefolder.build(root=str(tmp_path), size=8)


def test_names_that_are_not_utf8(tmp_path):
    write_folder(tmp_path)
    odd = os.path.join(os.fsencode(tmp_path / "train" / "ant"), b"\xff.png")
    with open(odd, "wb") as file:
        file.write(b"damaged")
    task = imagefolder.build(root=str(tmp_path), size=8, val_fraction=0.0)
    assert sum(len(task.splits[split]) for split in SPLITS) == 31
    message = one_line(lambda: [list(task.splits[split].batches([torch.arange(len(task.splits[split]))]))
                                for split in SPLITS])
    assert "/train/ant/\\xff.png): is not an image" in message and message.encode()
    os.rename(os.fsencode(tmp_path / "train" / "bee"), os.path.join(os.fsencode(tmp_path / "train"), b"b\xff"))
    assert "the name of class b\\xff is not UTF-8" in one_line(imagefolder.build, root=str(tmp_path))


# ------------------------------------------------------------------------------------------- decoding

def seen(image, channels=3, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return _images.read_square(stream.getvalue(), channels, 16, "x")


def test_an_image_is_turned_upright_as_exif_says():
    pixels = picture(0, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter to the right
    want = np.rot90(pixels, -1).transpose(2, 0, 1)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(seen(Image.fromarray(pixels), kind=kind, exif=exif, **options), want), kind


def test_colour_under_transparent_pixels_does_not_show():
    inner = (slice(None), slice(4, 12), slice(4, 12))
    for hidden in (0, 255):
        pixels = np.full((16, 16, 4), hidden, np.uint8)
        pixels[..., 3] = 0
        pixels[4:12, 4:12] = [10, 200, 10, 255]
        colour = Image.fromarray(pixels)
        palette = colour.convert("RGB").quantize(4)
        palette.info["transparency"] = palette.getpixel((0, 0))
        for image, kind in ((colour, "PNG"), (colour, "WEBP"), (palette, "PNG"), (palette, "GIF")):
            options = {"lossless": True} if kind == "WEBP" else {}
            got = seen(image, kind=kind, **options)
            assert (got[:, 0] == 255).all() and (got[inner][:, 0, 0] == [10, 200, 10]).all(), (image.mode, kind)
        grey = seen(colour.convert("LA"), channels=1)
        assert (grey[:, 0] == 255).all() and grey[inner].max() == colour.convert("L").getpixel((5, 5))
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    assert (seen(half) == 127).all()
