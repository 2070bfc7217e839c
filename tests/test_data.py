"""Named sets, IDX files, folders, zips and tensors."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gan_fast import data
from gan_fast.data.idx import read_idx, read_pair
from gan_fast.data.images import convert, to_float

few = settings(derandomize=True, max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache or data."""
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GAN_FAST_DATA", raising=False)


def idx_bytes(values: np.ndarray, kind: int = 0x08) -> bytes:
    return (
        struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
    )


def write_part(folder: Path, split: str, count: int = 12, packed: bool = True, dotted: bool = False) -> None:
    """A small set of MNIST's file names: image i is filled with i, its label is i % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "train" if split == "train" else "t10k"
    images = np.repeat(np.arange(count), 28 * 28).reshape(count, 28, 28)
    for role, values in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
        name = f"{stem}-{role}-ubyte".replace("-idx", ".idx" if dotted else "-idx")
        content = idx_bytes(values)
        (folder / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(content) if packed else content)


def write_png(path: Path, value: int = 7, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 2 * value, 3 * value)).save(path)


# ---- IDX files -------------------------------------------------------------------------------------------------------


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.booleans())
def test_idx_gives_back_what_was_written(tmp_path_factory, sizes, packed):
    values = np.random.default_rng(0).integers(0, 256, sizes).astype(np.uint8)
    path = tmp_path_factory.mktemp("idx") / "x"
    path.write_bytes(gzip.compress(idx_bytes(values)) if packed else idx_bytes(values))
    assert torch.equal(read_idx(path, rank=len(sizes)), torch.from_numpy(values))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG rest", "not an IDX file"),
        (b"\0", "not an IDX file"),
        (idx_bytes(np.zeros(3), kind=0x0D), "type 0x0d"),
        (idx_bytes(np.zeros((2, 2))), "2 dimension.*expected 3"),
        (idx_bytes(np.zeros((2, 2, 2)))[:10], "truncated inside its header"),
        (idx_bytes(np.zeros((2, 2, 2)))[:-1], "promises .* = 8 bytes, the file holds only 7"),
        (idx_bytes(np.zeros((2, 2, 2))) + b"x", "holds more"),
        (gzip.compress(idx_bytes(np.zeros((9, 9, 9))))[:-12], "damaged or truncated"),
        (gzip.compress(idx_bytes(np.zeros((2, 2, 2))))[:-8] + b"\0" * 8, "damaged or truncated"),
        (gzip.compress(idx_bytes(np.zeros((2, 2, 2)))[:-1]), "holds only 7"),
    ],
)
def test_bad_idx_is_refused_with_its_name(tmp_path, content, words):
    path = tmp_path / "bad-file"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=words) as caught:
        read_idx(path, rank=3)
    assert "bad-file" in str(caught.value)


def test_idx_counts_must_agree(tmp_path):
    (tmp_path / "i").write_bytes(idx_bytes(np.zeros((3, 2, 2))))
    (tmp_path / "l").write_bytes(idx_bytes(np.zeros(4)))
    with pytest.raises(data.DataError, match=r"3 images .* 4 labels"):
        read_pair(tmp_path / "i", tmp_path / "l")


# ---- named sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize(("packed", "dotted"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("by_variable", [False, True])
def test_mnist_is_found_in_folder_or_parent(tmp_path, monkeypatch, below, packed, dotted, by_variable):
    write_part(tmp_path / "d" / below, "train", packed=packed, dotted=dotted)
    if by_variable:
        monkeypatch.setenv("GAN_FAST_DATA", str(tmp_path / "d"))
    loaded = data.load("mnist", data_dir=None if by_variable else tmp_path / "d", download=False)
    assert loaded.images.shape == (12, 1, 28, 28) and loaded.images.dtype == torch.uint8
    assert loaded.images[:, 0, 0, 0].tolist() == list(range(12)) and loaded.labels.tolist() == [
        i % 10 for i in range(12)
    ]
    assert (loaded.name, loaded.split, loaded.shape, len(loaded)) == ("mnist", "train", (1, 28, 28), 12)


def test_cache_folder_is_searched(tmp_path):
    write_part(tmp_path / "cache" / "data" / "mnist", "test", count=3, packed=False)
    assert len(data.load("mnist", split="test", download=False)) == 3


@pytest.mark.parametrize("by_variable", [False, True])
def test_missing_part_is_named(tmp_path, monkeypatch, by_variable):
    write_part(tmp_path / "mnist", "test")
    monkeypatch.setenv("GAN_FAST_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"train part is incomplete.*train-images.*train-labels.*missing"):
        data.load("mnist", data_dir=None if by_variable else tmp_path)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(data.DataError, match=r"test part is incomplete in .*: t10k-labels-idx1-ubyte.gz missing"):
        data.load("mnist", split="test", data_dir=None if by_variable else tmp_path)


def test_explicit_data_dir_is_strict(tmp_path):
    with pytest.raises(data.DataError, match=r"holds no file of mnist, expected train-images-idx3-ubyte\.gz"):
        data.load("mnist", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.load("mnist", data_dir=tmp_path / "nowhere")


def test_variable_that_leads_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("GAN_FAST_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"GAN_FAST_DATA=.*nowhere.*no such folder"):
        data.load("mnist")


def test_another_set_with_the_same_file_names_is_not_taken(tmp_path):
    write_part(tmp_path / "fashion-mnist", "train")
    assert data.load("fashion_mnist", data_dir=tmp_path / "fashion-mnist").classes[9] == "Ankle boot"
    with pytest.raises(data.DataError, match="holds no file of mnist"):
        data.load("mnist", data_dir=tmp_path / "fashion-mnist")


def test_offline_message_says_what_goes_where(tmp_path):
    with pytest.raises(data.DownloadError) as caught:
        data.load("mnist", download=False)
    text = str(caught.value)
    assert str(tmp_path / "cache" / "data" / "mnist") in text and "--data-dir" in text and "GAN_FAST_DATA" in text
    assert "train-images-idx3-ubyte.gz  (9912422 bytes, sha256 440fcabf" in text and "train-labels" in text


def test_digits_are_real_complete_and_disjoint():
    train, test = data.load("digits"), data.load("digits", split="test")
    assert (len(train), len(test), train.shape) == (1498, 299, (1, 28, 28))
    assert train.images.max() == 255 and train.images.min() == 0 and train.images.dtype == torch.uint8
    assert len(set(train.labels.tolist())) == len(set(test.labels.tolist())) == 10
    from sklearn.datasets import load_digits

    # Bilinear scaling keeps the mean; one grey level of slack for the rounding and the edges.
    original = load_digits().images.mean() / 16 * 255
    assert abs(torch.cat([train.images, test.images]).float().mean().item() - original) < 1


def test_digits_without_scikit_learn_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'gan-fast\[data\]'"):
        data.load("digits")


@pytest.mark.parametrize(
    ("name", "words"),
    [("minst", "did you mean 'mnist'"), ("fashion", "fashion-mnist"), ("qqq", "expected one of digits, mnist")],
)
def test_unknown_names_get_near_ones(name, words):
    with pytest.raises(data.DataError, match=words):
        data.load(name)


@pytest.mark.parametrize("source", ["./no/such", "faces.zip", Path("nowhere")])
def test_paths_that_are_not_there(source):
    with pytest.raises(FileNotFoundError, match="no such folder or zip"):
        data.load(source)


def test_wrong_split_and_source_types():
    with pytest.raises(data.DataError, match="split='valid', expected one of train, test"):
        data.load("digits", split="valid")
    with pytest.raises(TypeError, match="source is a int"):
        data.load(3)


# ---- folders and zips ------------------------------------------------------------------------------------------------


def test_folder_with_classes_and_the_same_as_zip(tmp_path):
    for i, (kind, suffix) in enumerate([("cat", "png"), ("cat", "bmp"), ("dog", "png"), ("dog", "webp")]):
        write_png(tmp_path / "pets" / kind / "deep" / f"{i}.{suffix}", value=10 * i)
    (tmp_path / "pets" / "notes.txt").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for file in sorted((tmp_path / "pets").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path))
    folder, packed = data.load(tmp_path / "pets"), data.load(str(tmp_path / "pets.zip"))
    assert folder.shape == (1, 8, 8) and folder.labels.tolist() == [0, 0, 1, 1] and folder.classes == ("cat", "dog")
    assert sorted(folder.images[:, 0, 0, 0].tolist()) == pytest.approx([0, 10, 20, 30], abs=1)  # webp is lossy
    assert torch.equal(folder.images, packed.images) and torch.equal(folder.labels, packed.labels)


def test_flat_folder_has_no_labels_and_options_apply(tmp_path):
    write_png(tmp_path / "a.png", 10, (20, 10), "RGB")
    write_png(tmp_path / "b.jpg", 10, (9, 30), "RGB")
    loaded = data.load(tmp_path, image_size=8)
    assert loaded.shape == (3, 8, 8) and loaded.labels is None
    assert loaded.images[0, :, 4, 4].tolist() == [10, 20, 30]
    assert data.load(tmp_path, image_size=8, channels=1).shape == (1, 8, 8)


def test_crop_takes_the_centre(tmp_path):
    picture = np.zeros((10, 30), np.uint8)
    picture[:, 10:20] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert data.load(tmp_path, image_size=10).images.unique().tolist() == [200]


def test_links_to_folders_are_followed_once(tmp_path):
    write_png(tmp_path / "elsewhere" / "a.png", 5)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "up").symlink_to(tmp_path / "set")
    assert len(data.load(tmp_path / "set")) == 1


def test_turned_photographs_are_set_upright(tmp_path):
    picture = Image.new("L", (6, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert data.load(tmp_path).shape == (1, 6, 4)


def test_sixteen_bit_grey_is_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "a.png")
    assert data.load(tmp_path).images.unique().tolist() == [255]


def test_mixed_sizes_name_two_files(tmp_path):
    write_png(tmp_path / "a.png", size=(8, 8))
    write_png(tmp_path / "b.png", size=(9, 8))
    with pytest.raises(data.DataError, match=r"a\.png is 8x8 but .*b\.png is 9x8; give image_size"):
        data.load(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_unreadable_and_truncated_images_are_named(tmp_path, packed):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()

    def source(content: bytes) -> Path:
        if not packed:
            (tmp_path / "b.png").write_bytes(content)
            return tmp_path
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            archive.writestr("a.png", whole)
            archive.writestr("b.png", content)
        return tmp_path / "z.zip"

    with pytest.raises(data.DataError, match=r"b\.png cannot be decoded"):
        data.load(source(whole[: len(whole) // 2]))
    with pytest.raises(data.DataError, match=r"b\.png cannot be read as an image"):
        data.load(source(b"hello"))


def test_folder_without_images_and_broken_zip(tmp_path):
    with pytest.raises(data.DataError, match="holds no image"):
        data.load(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"PK nothing")
    with pytest.raises(data.DataError, match="neither a folder nor a readable zip"):
        data.load(tmp_path / "x.zip")


def test_image_files_travel_to_workers(tmp_path):
    write_png(tmp_path / "a.png", 5)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    for root in (tmp_path, tmp_path / "z.zip"):
        files = pickle.loads(pickle.dumps(data.ImageFiles(root)))
        assert files[0].unique().tolist() == [5]


@pytest.mark.parametrize("option", [{"image_size": 0}, {"channels": 2}])
def test_impossible_options(tmp_path, option):
    write_png(tmp_path / "a.png")
    for source in (tmp_path, torch.zeros(2, 1, 8, 8)):
        with pytest.raises(data.DataError, match=next(iter(option))):
            data.load(source, **option)


# ---- tensors and conversion ------------------------------------------------------------------------------------------


def test_conversion_is_exact_at_the_ends_and_ignores_the_default_dtype():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    try:
        torch.set_default_dtype(torch.float64)
        out = to_float(values)
    finally:
        torch.set_default_dtype(torch.float32)
    assert out.dtype == torch.float32 and out.flatten()[0] == -1 and out.flatten()[-1] == 1
    assert torch.equal(((out + 1) * 127.5).round().to(torch.uint8), values)


@few
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 33), st.sampled_from([1, 3]), st.sampled_from([1, 3, None])
)
def test_convert_gives_the_asked_shape_and_keeps_constants(height, width, size, old, new):
    images = torch.full((2, old, height, width), 93, dtype=torch.uint8)
    made = convert(data.ImageData(images), size, new).images
    assert made.shape == (2, new or old, size, size) and made.dtype == torch.uint8 and made.unique().tolist() == [93]


def test_convert_without_options_is_the_same_object_and_grey_uses_the_weights():
    colour = data.ImageData(torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1))
    assert convert(colour, None, None) is colour
    assert convert(colour, None, 1).images.item() == round(0.299 * 255)
    with pytest.raises(data.DataError, match="has 2 channels"):
        convert(data.ImageData(torch.zeros(1, 2, 4, 4)), None, 3)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.full((2, 1, 2, 2), float("nan")), "8 of 8 values are NaN"),
        (torch.tensor([0.0, torch.inf, 0.5, 1.0]).view(1, 1, 2, 2), "1 of 4 values are NaN or infinite"),
        (torch.tensor([0.0, 1.5, -0.5, -3.0]).view(1, 1, 2, 2), r"2 of 4 values lie outside \[-1, 1\].*-3 to 1.5"),
        (torch.full((1, 1, 2, 2), 255.0), "127.5"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.int64), "dtype torch.int64"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), r"unsqueeze\(1\)"),
        (torch.zeros(4, 2), r"shape \(4, 2\), expected \(N, C, H, W\)"),
        (torch.zeros(0, 1, 2, 2), "empty"),
    ],
)
def test_bad_tensors(tensor, words):
    with pytest.raises(data.DataError, match=words):
        data.load(tensor)
    with pytest.raises(data.DataError, match=words):
        data.feed(tensor, 1)


def test_fingerprint_follows_content_shape_and_labels():
    images = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    base = data.ImageData(images)
    assert base.fingerprint == data.ImageData(images.clone(), name="other").fingerprint
    others = [
        data.ImageData(images.view(1, 2, 2, 2)),
        data.ImageData(images + 1),
        data.ImageData(images, torch.zeros(2, dtype=torch.int64)),
    ]
    assert len({base.fingerprint, *(o.fingerprint for o in others)}) == 4


# ---- wrong options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["32", 32.0, 0, -1, True])
def test_image_size_must_be_a_positive_integer(tmp_path, size):
    write_png(tmp_path / "a.png")
    for source in (tmp_path, torch.zeros(2, 1, 8, 8)):
        with pytest.raises(data.DataError, match=rf"image_size={size!r}, expected a positive integer"):
            data.load(source, image_size=size)
    assert data.load(tmp_path, image_size=np.int64(4)).shape == (1, 4, 4)


def test_a_folder_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    """Simulated, because the superuser may read everything."""
    write_png(tmp_path / "open" / "a.png")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for source in (tmp_path / "closed", tmp_path):
        with pytest.raises(data.DataError, match=r"closed cannot be read: Permission denied"):
            data.load(source)
    assert len(data.load(tmp_path / "open")) == 1
