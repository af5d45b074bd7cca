"""The memory that a process may use, read from files like those of Linux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fourbee.foundation.memory import memory_bytes, usable_bytes

GB = 1_000_000_000
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def files(root: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def linux(tmp_path):
    """A machine with 4 GB available, of whose memory this process has 0.1 GB."""
    files(
        tmp_path,
        proc__meminfo="MemTotal: 9000000 kB\nMemAvailable:    4000000 kB\n",
        proc__self__status="Name:\tx\nRssAnon:\t  100000 kB\nRssFile:\t 7 kB\n",
        proc__self__cgroup="0::/\n",
    )
    return tmp_path


def test_without_a_limit_it_is_what_is_available_and_what_it_has(linux) -> None:
    assert usable_bytes(linux) == 4_100_000 * 1024
    assert memory_bytes(linux) == MACHINE


def group(root: Path, path: str, limit: object, used: int, files_in_memory: int = 0) -> None:
    """A control group of the second version."""
    half = files_in_memory // 2
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\ninactive_file {half}\nactive_file {files_in_memory - half}\nfile 9\n"
    )


def test_a_containers_limit_bounds_both(linux) -> None:
    group(linux, "", 2 * GB, GB, files_in_memory=GB // 4)
    assert usable_bytes(linux) == 100_000 * 1024 + 2 * GB - (GB - GB // 4)
    assert memory_bytes(linux) == 2 * GB


def test_no_limit_is_none(linux) -> None:
    group(linux, "", "max", GB)
    assert usable_bytes(linux) == 4_100_000 * 1024


def test_the_tightest_of_the_groups_around_counts(linux) -> None:
    files(linux, proc__self__cgroup="0::/a/b\n")
    group(linux, "a/b", 3 * GB, 0)
    group(linux, "a", 2 * GB, GB)
    group(linux, "other", 1, 0)
    assert usable_bytes(linux) == 100_000 * 1024 + GB
    assert memory_bytes(linux) == 2 * GB


def test_a_group_that_is_over_its_limit_leaves_what_the_process_has(linux) -> None:
    group(linux, "", GB, 2 * GB)
    assert usable_bytes(linux) == 100_000 * 1024


def test_groups_of_the_first_version(linux) -> None:
    files(
        linux,
        proc__self__cgroup="5:cpu,cpuacct:/x\n4:memory:/docker/id\n0::/\n",
        # Inside of the container its own group is the root, and /docker/id is not there.
        **{
            "sys__fs__cgroup__memory__memory.limit_in_bytes": f"{3 * GB}\n",
            "sys__fs__cgroup__memory__memory.usage_in_bytes": f"{2 * GB}\n",
            "sys__fs__cgroup__memory__memory.stat": "inactive_file 1\nactive_file 2\n"
            f"total_inactive_file {GB // 2}\ntotal_active_file {GB // 2}\n",
        },
    )
    assert usable_bytes(linux) == 100_000 * 1024 + 2 * GB
    assert memory_bytes(linux) == 3 * GB


def test_a_system_that_does_not_say_what_is_free(tmp_path) -> None:
    assert usable_bytes(tmp_path) == int(MACHINE * 0.75)


def test_here_it_is_less_than_the_machine_has() -> None:
    assert 0 < usable_bytes() <= memory_bytes() <= MACHINE
