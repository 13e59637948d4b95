"""Run the asv suite: on this checkout, on revisions to keep the results, and publish them.

    python benchmarks/run_asv.py quick [--bench REGEX]           # print, keep nothing (make bench)
    python benchmarks/run_asv.py record [REV ...] [--bench REGEX] # into benchmarks/results/asv
    python benchmarks/run_asv.py publish [--out build/benchmarks-html]

`record` without a revision takes the last commit. Every revision is measured with its own package
and with the cases of this checkout. `publish` writes a static site whose index.html has a picture
of the trend of every timed case, and needs no network, and asv's own application as asv.html. That
one loads jquery and others from the net; --libraries takes them from a folder. The exit status is 1
if a benchmark failed; one that cannot run on this machine (a GPU case, say) is shown as n/a.
GHN_FAST_INSTRUCTIONS=1 counts instructions, too.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import ROOT, processor
from suite.processes import environment
from suite.results import RESULTS, failures, file_of, read_results, tidy
from suite.trees import CACHE, BuildError, build, commit_of_revision, tree_of

CONFIG = ROOT / "benchmarks" / "asv.conf.json"


class AsvError(Exception):
    """asv cannot be run; the message says why."""


def gpu() -> str:
    """Name of the GPU, or ``none``."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


def machine_name() -> str:
    """Name the machine by its processors and GPU, without the name of the host."""
    name = processor() + ("" if gpu() == "none" else f" {gpu()}")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def asv(arguments: list[str], tree: Path | None = None, config: Path = CONFIG) -> int:
    """Run asv with settings of its own, apart from the user's; returns its exit status.

    Raises:
        AsvError: If it is not installed.
    """
    home = CACHE / "asv-home"
    home.mkdir(parents=True, exist_ok=True)
    env = environment(tree or ROOT)
    env |= {"HOME": str(home), "ASV_PYTHONPATH": env.pop("PYTHONPATH")}
    command = [sys.executable, "-m", "asv", arguments[0], "--config", str(config), *arguments[1:]]
    if subprocess.run([sys.executable, "-c", "import asv"], capture_output=True).returncode != 0:
        raise AsvError("asv is not installed; `pip install 'ghn-fast[bench]'`")
    return subprocess.run(command, cwd=ROOT / "benchmarks", env=env).returncode


def describe_machine() -> str:
    """Tell asv about this machine; returns its name."""
    name = machine_name()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    asv(
        [
            "machine",
            "--yes",
            f"--machine={name}",
            f"--cpu={processor()}",
            f"--num_cpu={os.cpu_count()}",
            f"--os={platform.system()} {platform.release()}",
            f"--arch={platform.machine()}",
            f"--ram={pages // 2**30} GiB",
        ]
    )
    return name


def run(tree: Path, commit: str, bench: str | None, config: Path) -> int:
    """Measure a tree into the results of a configuration; returns asv's exit status."""
    name = describe_machine()
    arguments = [
        "run",
        f"--environment=existing:{sys.executable}",
        f"--machine={name}",
        f"--set-commit-hash={commit}",
        "--show-stderr",
        # Forks of one process that has imported torch.
        "--launch-method=forkserver",
        *([f"--bench={bench}"] if bench else []),
    ]
    return asv(arguments, tree, config)


def measure(tree: Path, commit: str, bench: str | None, results: Path) -> list[str]:
    """Measure a tree, keep the results under ``results``, and return what failed.

    Raises:
        AsvError: If asv wrote no results.
    """
    import torch

    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), results)
        status = run(tree, commit, bench, config)
    path = file_of(results, machine_name(), commit)
    if path is None:
        raise AsvError(f"asv ended with status {status} and wrote no results")
    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": processor(),
        "gpu": gpu(),
        "arch": platform.machine(),
        "os": f"{platform.system()} {platform.release()}",
        "num_cpu": str(os.cpu_count()),
    }
    path = tidy(path, about)
    found = failures(json.loads(path.read_text()))
    if status != 0 and not found:
        found.append(f"asv ended with status {status}")
    return found


def configuration(folder: Path, results: Path) -> Path:
    """Write asv's configuration with other folders, all of them absolute."""
    settings = json.loads(CONFIG.read_text())
    here = CONFIG.parent
    settings |= {"repo": str(ROOT), "benchmark_dir": str(here / "asv_suite")}
    settings |= {"results_dir": str(results), "env_dir": str(CACHE / "asv-env")}
    settings["html_dir"] = str(ROOT / "build" / "benchmarks-html")
    path = folder / "asv.conf.json"
    path.write_text(json.dumps(settings))
    return path


def use_libraries(page: Path, folder: Path) -> None:
    """Let asv's page take the libraries that it loads from the net from a folder.

    Args:
        page: The page; the libraries go into a folder beside it.
        folder: Has, somewhere below, a file for each of them: jquery.min.js or jquery.js and so on.

    Raises:
        AsvError: If one is missing.
    """
    text = page.read_text()
    there = {path.name: path for path in sorted(folder.rglob("*")) if path.is_file()}
    for tag, url in re.findall(
        r"""(<(?:script|link)[^>]*?(?:src|href)="(https://[^"]*)"[^>]*>)""", text
    ):
        # jquery-3.3.1.min.js is jquery.min.js in the package.
        name = re.sub(r"-[0-9.]+(?=\.min\.|\.js$)", "", url.rpartition("/")[2])
        path = there.get(name) or there.get(name.replace(".min.", "."))
        if path is None:
            raise AsvError(f"{folder} has no {name}, which the site needs")
        (page.parent / "libraries").mkdir(exist_ok=True)
        shutil.copy(path, page.parent / "libraries" / path.name)
        plain = re.sub(r' (integrity|crossorigin|referrerpolicy)="[^"]*"', "", tag)
        text = text.replace(tag, plain.replace(url, f"libraries/{path.name}"))
    page.write_text(text)


def publish(out: Path, libraries: Path | None) -> int:
    """Write the site: a page with pictures of the trends, and asv's application.

    Raises:
        AsvError: If there are no results, or asv fails.
    """
    from suite.trends import draw_trends

    if not read_results(RESULTS):
        raise AsvError(f"there are no results in {RESULTS}; `run_asv.py record` makes some")
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder), RESULTS)
        settings = json.loads(config.read_text()) | {"html_dir": str(out.resolve())}
        config.write_text(json.dumps(settings))
        if asv(["publish"], config=config) != 0:
            raise AsvError("asv publish failed")
    (out / "index.html").replace(out / "asv.html")
    if libraries is not None:
        use_libraries(out / "asv.html", libraries)
    results = read_results(RESULTS)
    pages = draw_trends(results, out)
    (out / "index.html").write_text(index_page(results, pages))
    print(f"Wrote {out / 'index.html'} with {len(pages)} pictures, and {out / 'asv.html'}")
    return 0


def index_page(results: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> str:
    """Write the page with the trends, HTML that needs nothing but the pictures beside it."""
    commits = list(dict.fromkeys(result["commit_hash"][:7] for result in results))
    machines = sorted({result["params"]["machine"] for result in results})
    images = "\n".join(
        f'<img src="{html.escape(picture.name)}" alt="Times of cases over the commits, part {n} of '
        f'{len(pictures)}" style="max-width: 100%">'
        for n, picture in enumerate(pictures, 1)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        "<title>ghn_fast: trends of the benchmarks</title>\n"
        "<h1>ghn_fast: trends of the benchmarks</h1>\n"
        f"<p>Milliseconds per call at {len(commits)} commits ({html.escape(', '.join(commits))}); "
        f"machines: {html.escape(', '.join(machines))}. "
        '<a href="asv.html">All results in asv</a> (served over HTTP, with a network).</p>\n'
        f"{images}\n</html>\n"
    )


def report(found: list[str]) -> int:
    """Print what failed; returns the exit status."""
    for line in found:
        print(f"FAILED {line}")
    return 1 if found else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("quick", "record"):
        command = commands.add_parser(name)
        command.add_argument("--bench", help="benchmarks whose name matches this expression")
        if name == "record":
            command.add_argument("revisions", nargs="*", default=["HEAD"])
    site = commands.add_parser("publish")
    site.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks-html")
    site.add_argument("--libraries", type=Path, help="folder with what the site loads from the net")
    arguments: Any = parser.parse_args(argv)
    try:
        if arguments.command == "publish":
            return publish(arguments.out, arguments.libraries)
        if arguments.command == "quick":
            build(ROOT)
            results = CACHE / "quick"
            shutil.rmtree(results, ignore_errors=True)
            return report(measure(ROOT, commit_of_revision("HEAD"), arguments.bench, results))
        found = []
        for revision in arguments.revisions:
            commit = commit_of_revision(revision)
            wrong = measure(tree_of(revision), commit, arguments.bench, RESULTS)
            found += [f"{revision}: {line}" for line in wrong]
        return report(found)
    except (AsvError, BuildError) as error:
        print(f"run_asv: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
