"""What the docs say of the program is what the program says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from fourbee import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_line_reference_is_the_programs_help():
    # Another process: its terminal width is fixed before the command line is imported.
    code = (
        "import sys; sys.path.insert(0, 'tools'); import docs; print(docs.cli_reference(), end='')"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs/cli.md").read_text() == shown.stdout, "run `make docs`"


def test_the_readmes_speed_is_what_the_benchmarks_wrote():
    code = (
        "import sys; sys.path.insert(0, 'tools'); import docs; "
        "print(docs.with_speed(docs.README.read_text()), end='')"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    readme = (ROOT / "README.md").read_text()
    assert readme == shown.stdout, "run `make docs`"
    for shape in ("0.6B", "4B"):
        results = (ROOT / "benchmarks" / "results" / f"peers-{shape}.md").read_text()
        assert results.splitlines()[-1] in readme


def test_every_link_of_the_documents_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_changelog_opens_with_this_version():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] == __version__


def test_every_command_of_the_readme_exists():
    from fourbee.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {"eval"} | {group.typer_instance.info.name for group in app.registered_groups}
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("    fourbee "):
            assert line.split()[1] in known, line


def test_nothing_committed_names_a_package_registry():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = ("pypi" + ".org", "files.python" + "hosted", "registry.npm" + "js")
    for name in files.stdout.split():
        if (ROOT / name).suffix in {".py", ".md", ".toml", ".txt", ".json", ".yml"}:
            text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
            assert not any(host in text for host in names), name
