"""What is decided by the kind of device, with one that only says that it is there."""

import pytest
import torch

from toolkit.errors import TrainingError
from toolkit.models import digests, precision
from toolkit.recipe import recipe_from_keywords
from toolkit.stages import arguments, processes
from toolkit.stages.device_faults import of_device
from toolkit.stages.failures import one_line


@pytest.fixture
def device(monkeypatch):
    """Makes torch believe in a device, which computes bfloat16 or not."""

    def there(kind, bf16):
        found = None if kind == "cpu" else torch.device(kind)
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available=False: found
        )
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(precision, "is_torch_bf16_gpu_available", lambda: bf16)

    return there


def decided(**keys):
    recipe = recipe_from_keywords("sft", model_name_or_path="x", dataset_name="y", **keys)
    return arguments.device_arguments(recipe.stages[0])


@pytest.mark.parametrize(
    ("kind", "bf16", "found"),
    [
        ("cpu", False, {"use_cpu": True, "bf16": False}),
        ("cuda", True, {"bf16": True, "fp16": False}),
        ("cuda", False, {"bf16": False, "fp16": True}),
        ("mps", True, {"bf16": True, "fp16": False, "dataloader_pin_memory": False}),
        ("mps", False, {"bf16": False, "fp16": False, "dataloader_pin_memory": False}),
        ("xpu", True, {"bf16": True, "fp16": False}),
    ],
)
def test_precision_and_memory(kind, bf16, found, device):
    device(kind, bf16)
    assert decided() == found
    assert processes.on_cpu() == (kind == "cpu")


def test_what_is_written_stays(device):
    device("mps", False)
    assert decided(fp16=True, bf16=False, dataloader_pin_memory=True) == {}


@pytest.mark.parametrize(
    ("kind", "bf16", "declared", "found"),
    [
        ("cpu", False, "float16", "float32"),
        ("cpu", False, "bfloat16", "auto"),
        ("mps", False, "bfloat16", "float32"),
        ("mps", True, "bfloat16", "auto"),
        ("mps", False, "float16", "auto"),
        ("cuda", False, "bfloat16", "auto"),
    ],
)
def test_the_base_s_dtype(kind, bf16, declared, found, device, monkeypatch):
    device(kind, bf16)
    monkeypatch.setattr(precision, "declared_dtype", lambda name, **hub: declared)
    assert precision.device_dtype("x", "auto") == found
    assert precision.device_dtype("x", "float16") == "float16"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "The operator 'aten::_linalg_svd.U' is not currently implemented for the MPS device. If "
            "you want this op to be considered for addition please comment on …",
            "aten::_linalg_svd.U is not implemented on MPS in torch .*PYTORCH_ENABLE_MPS_FALLBACK=1",
        ),
        (
            "MPS backend out of memory (MPS allocated: 9.07 GB, other allocations: 1 MB).\nUse …",
            r"not enough memory \(MPS backend out of memory .*\); lower per_device_train_batch_size",
        ),
    ],
)
def test_what_a_device_lacks_is_one_line(said, found, tmp_path):
    kind = NotImplementedError if "operator" in said else RuntimeError
    with pytest.raises(TrainingError, match=found) as caught, one_line(tmp_path):
        raise kind(said)
    assert "\n" not in str(caught.value)
    assert of_device(RuntimeError("something else")) is None


def test_a_fingerprint_on_apple_s_devices_needs_no_float64(monkeypatch):
    """Metal has none: it is made on the CPU, whose memory it is."""
    monkeypatch.setattr(digests, "reduced", lambda tensor: pytest.fail("on the device"))

    class Held:
        device = torch.device("mps")

        def detach(self):
            return self

    monkeypatch.setattr(digests, "_sha256", lambda tensor: "a digest")
    assert digests.fingerprint(Held()) == "a digest"  # pyright: ignore[reportArgumentType]
