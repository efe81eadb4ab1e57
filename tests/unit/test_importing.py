"""Large libraries are imported without the garbage collector, which is as it was afterwards."""

import gc
import sys
import weakref

import pytest

from toolkit.importing import import_at_once


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of one that says whether it was imported with the collector on."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_once.py").write_text("import gc\ncollected = gc.isenabled()\n")
    yield "imported_once"
    sys.modules.pop("imported_once", None)


def test_the_collector_rests_and_goes_on(module):
    assert not import_at_once(module).collected
    assert gc.isenabled()
    assert not gc.get_freeze_count()


def test_it_goes_on_after_an_error():
    with pytest.raises(ModuleNotFoundError):
        import_at_once("no_such_module_here")
    assert gc.isenabled()


def test_garbage_of_before_is_found(module):
    class Thing:
        pass

    thing = Thing()
    thing.itself = thing
    there = weakref.ref(thing)
    del thing
    import_at_once(module)
    gc.collect()
    assert there() is None


def test_what_somebody_has_frozen_stays_so(module):
    gc.freeze()
    try:
        assert import_at_once(module).collected
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
