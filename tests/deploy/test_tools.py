"""The commands, as a person types them."""

import json
import runpy
import sys

import pytest

from tests.deploy.small import needs, save_pictures, save_run
from tests.tiny import REPOSITORY

needs_faiss = needs("faiss")


@pytest.fixture
def call(monkeypatch, capsys):
    """``call(name, …)`` runs a command of tools/ in this process: exit status, output, errors."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / "tools" / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@needs_faiss
def test_build_search_add_info(call, run, pictures, tmp_path):
    index, page = tmp_path / "gallery.index", tmp_path / "page.html"
    code, _, errors = call("index_net.py", "build", "--weights", run, "--images", pictures, "--out", index)
    assert code == 0 and "40 images by the gallery network TestNet" in errors
    more = save_pictures(tmp_path / "more", 2, first=60)
    code, _, errors = call("index_net.py", "add", "--weights", run, "--index", index, "--images", tmp_path / "more")
    assert code == 0 and "42 images" in errors
    asked = ["search", "--weights", run, "--part", "gallery", "--index", index, "--topk", 3, "--html", page]
    code, out, _ = call("index_net.py", *asked, more[0], more[1])
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == str(more[0]) and lines[1].split() == ["1", "1.0000", str(more[0])]
    assert len(lines) == 2 * 4 + 1 and lines[5].split()[2] == str(more[1])
    assert page.read_text(encoding="utf-8").count("<img") == 8
    code, out, _ = call("index_net.py", "info", "--index", index)
    assert code == 0 and json.loads(out)["embedding"]["network"] == "TestNet"


@needs_faiss
def test_answers_show_names_in_printable_characters(call, run, tmp_path):
    """The user's own names, and none that moves the cursor or turns the reading direction."""
    paths = save_pictures(tmp_path / "p", 2)
    table = tmp_path / "p/t.csv"
    table.write_text(f"path,identity\n{paths[0].name},shoe-17\n{paths[1].name},\u202eevil\x1b[2J\n", encoding="utf-8")
    index = tmp_path / "g.index"
    assert call("index_net.py", "build", "--weights", run, "--images", table, "--out", index)[0] == 0
    asked = ["search", "--weights", run, "--part", "gallery", "--index", index]
    code, out, _ = call("index_net.py", *asked, paths[0], paths[1])
    assert code == 0 and "[shoe-17]" in out and "[\\u202eevil\\x1b[2J]" in out
    assert all(letter.isprintable() or letter == "\n" for letter in out)


@needs_faiss
def test_mistakes_end_in_one_line_and_status_2(call, run, pictures, tmp_path):
    index = tmp_path / "gallery.index"
    call("index_net.py", "build", "--weights", run, "--images", pictures, "--out", index)
    retrained, cut = save_run(tmp_path / "acd/last.pth", gallery=3), tmp_path / "cut.index"
    cut.write_bytes(index.read_bytes()[:-100])
    image = next(iter(pictures.iterdir()))
    for arguments, message in [
        (["search", "--weights", retrained, "--index", index, image], "must be embedded again"),
        (["search", "--weights", run, "--index", cut, image], "cut short"),
        (["search", "--weights", run, "--index", index, tmp_path / "no.png"], "no.png cannot be read"),
        (["add", "--weights", retrained, "--index", index, "--images", pictures], "must be embedded again"),
        (["build", "--weights", run, "--images", tmp_path / "acd", "--out", tmp_path / "x.index"], "no image"),
        (["build", "--weights", tmp_path / "no.pth", "--images", pictures, "--out", index], "no such weight file"),
        (["info", "--index", tmp_path / "no.index"], "no such gallery index"),
    ]:
        code, _, errors = call("index_net.py", *arguments)
        last = errors.strip().splitlines()[-1]
        assert code == 2 and last.startswith("error: ") and message in last, (arguments, errors)
    assert not (tmp_path / "x.index").exists()


@needs("faiss", "pymilvus", "milvus_lite")
def test_the_same_commands_on_milvus(call, run, tmp_path):
    paths = save_pictures(tmp_path / "p", 3)
    engine = ["--engine", "milvus", "--uri", tmp_path / "g.db"]
    code, _, errors = call("index_net.py", "build", "--weights", run, "--images", tmp_path / "p", *engine)
    assert code == 0 and "3 images by the gallery network TestNet" in errors
    assert call("index_net.py", "remove", *engine, "--path", paths[0])[0] == 0
    code, out, _ = call("index_net.py", "search", "--weights", run, "--part", "gallery", *engine, paths[1])
    assert code == 0 and out.splitlines()[1].split()[2] == str(paths[1])
    assert str(paths[0]) not in out
    for wrong in (["info"], ["info", "--engine", "milvus"], ["info", *engine, "--index", tmp_path / "g.index"]):
        code, _, errors = call("index_net.py", *wrong)
        assert code == 2 and "give the index file (--index, build: --out), or --engine milvus with --uri" in errors


@needs("onnx", "onnxscript", "onnxruntime")
def test_export_prints_what_it_checked_and_the_costs(call, run, tmp_path):
    out = tmp_path / "query.onnx"
    code, text, _ = call("export_net.py", "--weights", run, "--part", "query", "--format", "onnx", "--out", out)
    assert code == 0 and out.exists() and (tmp_path / "query.onnx.json").exists()
    assert "onnxruntime differs from PyTorch by at most" in text and "14 × 12 × 16" in text
    assert text.count("TestNet") == 3 and "ratio" in text and "multiply-adds" in text


@needs("safetensors")
def test_export_beside_the_weights(call, tmp_path):
    weights = save_run(tmp_path / "last.pth")
    asked = ["--part", "gallery", "--format", "safetensors", "--no-costs"]
    code, text, _ = call("export_net.py", "--weights", weights, *asked)
    assert code == 0 and "ratio" not in text
    expected = ["gallery.safetensors", "gallery.safetensors.json", "last.pth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    (tmp_path / "out").mkdir()
    assert call("export_net.py", "--weights", weights, *asked, "--out", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected[:2]


def test_commands_explain_themselves(call):
    for name, shown in [
        ("export_net.py", "--part {query,gallery}"),
        ("serve_net.py", "--host HOST"),
        ("index_net.py", "{build,search,add,info,remove,sync}"),
    ]:
        code, text, _ = call(name, "--help")
        assert code == 0 and shown in text


def test_packages_that_are_missing_are_named(call, run, pictures, tmp_path, monkeypatch):
    for module, name, arguments in [
        ("faiss", "index_net.py", ["build", "--weights", run, "--images", pictures, "--out", tmp_path / "g.index"]),
        ("onnx", "export_net.py", ["--weights", run, "--out", tmp_path / "q.onnx"]),
    ]:
        monkeypatch.setitem(sys.modules, module, None)
        code, _, errors = call(name, *arguments)
        assert code == 2 and "pip install -r requirements-deploy.txt" in errors.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())
