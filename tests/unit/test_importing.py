"""Large libraries are imported without the garbage collector, which goes on afterwards."""

import functools
import gc
import subprocess
import sys
import weakref

import pytest

from toolkit.importing import import_at_once


@pytest.fixture(autouse=True)
def nothing_frozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["before torch", "after torch"])
def is_first(request, monkeypatch):
    """Whether torch is not there yet."""
    if request.param == "before torch":
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        return True
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", sys))
    return False


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of one that says whether it was imported with the collector on."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_once.py").write_text(
        "import functools\nimport gc\ncollected = gc.isenabled()\n"
        "asked = functools.lru_cache(str)\nfew = functools.lru_cache(maxsize=2)(str)\n"
        "default = functools.lru_cache()(str)\n"
    )
    yield "imported_once"
    sys.modules.pop("imported_once", None)


class Ring:
    """An object that only the collector can free."""

    def __init__(self):
        self.itself = self


def test_the_collector_rests_and_goes_on(module, is_first):
    assert not import_at_once(module).collected
    assert gc.isenabled()
    assert bool(gc.get_freeze_count()) == is_first


@pytest.mark.usefixtures("is_first")
def test_it_goes_on_after_an_error():
    with pytest.raises(ModuleNotFoundError):
        import_at_once("no_such_module_here")
    assert gc.isenabled()


@pytest.mark.usefixtures("is_first")
def test_garbage_of_before_is_found(module):
    ring = Ring()
    there = weakref.ref(ring)
    del ring
    import_at_once(module)
    gc.collect()
    assert there() is None


def test_what_becomes_garbage_is_found_where_models_may_be_among_it(module, is_first):
    ring = Ring()
    there = weakref.ref(ring)
    import_at_once(module)
    del ring
    gc.collect()
    assert (there() is not None) == is_first


def test_what_nobody_refers_to_is_freed_as_ever(module, is_first):
    held = Ring()
    held.itself = None
    there = weakref.ref(held)
    import_at_once(module)
    del held
    assert there() is None


@pytest.mark.usefixtures("is_first")
def test_what_somebody_has_frozen_stays_so(module):
    gc.freeze()
    frozen = gc.get_freeze_count()
    assert not import_at_once(module).collected
    assert gc.get_freeze_count() >= frozen


def test_where_the_collector_was_off_it_stays_off(module):
    gc.disable()
    try:
        import_at_once(module)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_caches_of_others_are_as_large_as_ever(module):
    own = functools.lru_cache
    sizes = vars(import_at_once(module))
    found = [sizes[name].cache_parameters()["maxsize"] for name in ("asked", "few", "default")]
    assert found == [128, 2, 128]
    assert sizes["asked"](7) == "7"
    assert functools.lru_cache is own


def test_transformers_looks_through_its_models_once():
    code = """if True:
        from toolkit.importing import import_at_once
        import_at_once("transformers.models")
        from transformers.utils.import_utils import create_import_structure_from_path as folder
        print(folder.cache_info().hits)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 400
