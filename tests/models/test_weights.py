"""Files are read without executing anything; tensors go where they belong, all of them."""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zsrobust.errors import UserError
from zsrobust.models.weights import fill, read_file, tensor_table


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    trace, file = tmp_path / "executed", tmp_path / "tower.pt"
    content = {"weight": torch.zeros(2), "extra": Malicious(trace)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"asks for posix\.mkdir") as caught:
        read_file(file)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    # The file is what it is feared to be: an ordinary load executes it.
    torch.load(file, weights_only=False)
    assert trace.exists()


def test_bare_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    trace, file = tmp_path / "executed", tmp_path / "tower.pt"
    file.write_bytes(pickle.dumps(Malicious(trace), protocol=2))
    with pytest.raises(UserError):
        read_file(file)
    assert not trace.exists()


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.bool_])
def test_numpy_scalars_beside_tensors_are_read(tmp_path: Path, kind: type) -> None:
    """The TeCoA authors' `best_acc1` is one."""
    file = tmp_path / "model.pth.tar"
    torch.save({"best_acc1": kind(1), "weight": torch.ones(2)}, file)
    found = read_file(file)
    assert found["best_acc1"] == kind(1)
    assert torch.equal(found["weight"], torch.ones(2))


def test_numpy_scalars_under_numpys_old_module_name_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.pth.tar"
    torch.save({"best_acc1": np.float64(43.5)}, file, _use_new_zipfile_serialization=False)
    old = file.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    file.write_bytes(old)
    assert b"numpy.core.multiarray" in old
    assert read_file(file)["best_acc1"] == 43.5


def test_safetensors_are_known_by_content(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3)}, tmp_path / "tower.bin")
    assert torch.equal(read_file(tmp_path / "tower.bin")["a"], torch.ones(3))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"garbage" * 30, "neither safetensors nor a checkpoint of torch.save"),
        (b"PK\x03\x04" + b"\0" * 80, "a damaged or cut off checkpoint"),
        (b"\x80\x02}", "a damaged or cut off checkpoint"),
        (b"\x80", "a damaged or cut off checkpoint"),
        (b"\x80\x04N.", "a pickle of protocol 4, which torch.save does not write"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "tower.pt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_file(file)
    assert "weights_only" not in str(caught.value)  # torch's text advises to run the file
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_file(tmp_path / "none.pt")


def test_truncated_pickle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tower.pt"
    torch.save({"a": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match="a damaged or cut off checkpoint; fetch or write it again"):
        read_file(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (5, "a value of type int, not a table"),
        ({}, "an empty table"),
        ({"weight": torch.ones(2), "epoch": 3}, r"no tensors: epoch"),
    ],
)
def test_what_is_no_table_of_tensors_is_said_to_be_none(content, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tensor_table(content, Path("tower.pt"))


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.tensor([1, 2]), r"1 of another type \(weight is torch.int64 for torch.float32\)"),
        (torch.tensor([1.0, torch.nan]), r"1 tensors hold NaN or infinity \(weight\)"),
        (torch.tensor([1.0, torch.inf]), "NaN or infinity"),
        (torch.ones(2).to(torch.float8_e5m2), "of another type"),
    ],
)
def test_weights_that_are_no_weights_are_refused(weight: torch.Tensor, words: str) -> None:
    norm = nn.BatchNorm1d(2, affine=True, track_running_stats=False)
    with pytest.raises(UserError, match=words):
        fill(norm, {"weight": weight, "bias": torch.zeros(2)}, "file", "mend it")
    assert torch.equal(norm.weight, torch.ones(2))


def test_torchscript_archive_is_refused_with_the_reason(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="TorchScript"):
            read_file(tmp_path / "model.pt")


def test_fill_keeps_the_modules_dtype_and_forgives_only_named_buffers() -> None:
    norm = nn.BatchNorm1d(2)
    tensors = {
        "weight": torch.tensor([1.5, 2.5], dtype=torch.float16),
        "bias": torch.zeros(2),
        "running_mean": torch.ones(2),
        "running_var": torch.ones(2),
    }
    fill(norm, tensors, "file", "mend it")  # without num_batches_tracked
    assert torch.equal(norm.weight, torch.tensor([1.5, 2.5]))
    assert norm.weight.dtype == torch.float32
    del tensors["running_var"]
    with pytest.raises(UserError, match=r"file: .*1 missing \(running_var\); mend it\."):
        fill(norm, tensors, "file", "mend it")
