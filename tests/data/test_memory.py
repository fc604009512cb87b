"""How much memory is said to be free."""

from d3still import memory

MEMINFO = "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    8000000 kB\n"


def system(tmp_path, monkeypatch, limit="max", used=0, cached=0):
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)


def test_what_the_system_has_left(tmp_path, monkeypatch):
    system(tmp_path, monkeypatch)
    assert memory.available_memory() == 8_000_000 * 1024


def test_a_container_may_have_less_and_its_page_cache_is_free(tmp_path, monkeypatch):
    system(tmp_path, monkeypatch, limit=10_000, used=7_000, cached=1_500)
    assert memory.available_memory() == 4_500


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_memory() is None


def test_here():
    free = memory.available_memory()
    assert free is None or free > 0
