import json
import shutil

import pytest

from ince.cli.chat_adapters import ChatAdapters
from ince.cli.target import find_target
from ince.errors import AdapterError, InputError
from ince.registry import Registry


def make(folder, weights=b"x"):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def plain():
    return find_target("owner/base")


def test_names_are_those_of_folders_runs_and_the_command_line(tmp_path, plain, adapter_folder):
    run = tmp_path / "turkish"
    make(run / "adapter")
    recipe = {"model": {"base": "owner/base"}, "data": {"train": "t.jsonl"}}
    record = {"format": "ince-run/1", "status": "done", "recipe": recipe}
    (run / "run.json").write_text(json.dumps(record))
    german = make(tmp_path / "german")
    root = tmp_path / "all"
    make(root / "polish", b"p")
    make(root / "base")
    (root / "notes").mkdir()
    registry = Registry(tmp_path / "registry", create=True)
    digest = registry.put(adapter_folder, name="kept")
    given = [str(run), f"de={german}"]
    found = ChatAdapters.of(plain, given, root, registry)
    assert found.names() == ["turkish", "de", "polish", "kept"]
    assert found.folder("turkish") == run / "adapter"
    assert found.folder("kept") == registry.folder(digest)
    # What comes meanwhile is there.
    make(root / "new", b"n")
    assert "new" in found.names()
    with pytest.raises(InputError) as caught:
        found.folder("turkisch")
    assert caught.value.do == "did you mean 'turkish'?"
    # One that is gone hides nobody.
    shutil.rmtree(registry.folder(digest))
    assert "kept" in found.names()
    with pytest.raises(AdapterError):
        found.folder("kept")
    own = ChatAdapters.of(find_target(str(run)), [], None, None)
    assert own.names() == ["turkish"]
    assert not ChatAdapters.of(plain, [], None, None)
    registry.close()


def test_two_of_one_name_are_an_error_unless_they_are_the_same(tmp_path, plain):
    one = make(tmp_path / "a" / "mine", b"1")
    other = make(tmp_path / "b" / "mine", b"2")
    with pytest.raises(InputError, match="one name"):
        ChatAdapters.of(plain, [str(one), str(other)], None, None)
    with pytest.raises(InputError, match="one name"):
        ChatAdapters.of(plain, [str(one)], tmp_path / "b", None)
    shutil.copytree(one, tmp_path / "c" / "mine")
    assert ChatAdapters.of(plain, [str(one)], tmp_path / "c", None).names() == ["mine"]
    assert ChatAdapters.of(plain, [str(one), f"b={other}"], None, None).names() == ["mine", "b"]


@pytest.mark.parametrize("text", ["nowhere", "a=nowhere", "base={}", "={}"])
def test_what_cannot_be_named(tmp_path, plain, text):
    folder = make(tmp_path / "x")
    with pytest.raises((InputError, AdapterError)):
        ChatAdapters.of(plain, [text.format(folder)], None, None)


def test_without_any_it_says_how_to_have_some(plain):
    with pytest.raises(InputError) as caught:
        ChatAdapters.of(plain, [], None, None).folder("x")
    assert "--adapters DIR" in caught.value.do


def test_a_name_moves_no_cursor(tmp_path, plain):
    folder = make(tmp_path / "a\x1b[2Jb")
    assert ChatAdapters.of(plain, [str(folder)], None, None).names() == ["a?[2Jb"]
    base = make(tmp_path / "base")
    assert ChatAdapters.of(plain, [str(base)], None, None).names() == ["adapter"]
