"""What `make bench` makes of what its processes have shown, and how it starts and ends them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "speed"))

import bench
import contestants
import equality
import examples
import figures
import on_gpu
from contestants import AGAIN, Call, words
from figures import Results
from processes import Crash, Process, Seen, in_turn
from rows import Work
from turns import rotated

SPEED = Path(bench.__file__).parent


def probe(seconds_a_place: float, lengths, warm_up: float = 0.0) -> dict:
    """Return what the probe sees of two epochs of 2 rows a step, padded to a length, whose time is that of the places.

    The steps of the first epoch take ``warm_up`` seconds more.
    """
    ends, inputs, now = [], [], 100.0
    for extra, length in [(extra, length) for extra in (warm_up, 0.0) for length in lengths]:
        now += 2 * length * seconds_a_place + extra
        ends.append(now)
        inputs.append([2, 2 * length, 2 * length - 1])
    return {"steps": ends, "inputs": inputs, "losses": [], "saves": [0.5], "laps": {}}


def seen(seconds_a_place: float = 0.001, lengths=(10, 20, 30, 40), laps=None, **metrics) -> Seen:
    shown = probe(seconds_a_place, lengths) | {"laps": laps or {}}
    return Seen(99.0, 10**9, shown, Path("out"), {"checkpoint_bytes": 1e6, **metrics})


@pytest.mark.parametrize("lengths", [(10, 20, 30, 40), (40, 30, 20, 10), (10, 40, 20, 30)])
def test_rates_are_those_of_every_row_once_after_an_epoch_of_warming_up(lengths):
    samples, tokens = figures.rates(probe(0.001, lengths, warm_up=3.0))
    assert samples == pytest.approx(8 / 0.2)
    assert tokens == pytest.approx(196 / 0.2)
    assert figures.rates({"steps": [1.0], "inputs": [[2, 10, 9]]}) == (0.0, 0.0)


def test_ratios_are_those_of_pairs_and_more_than_one_is_better():
    results = Results("imdb", {"ours": [seen(0.001), seen(0.002)], "plain": [seen(0.002), seen(0.006)]})
    speed = figures.ratio(results, figures.MEASURES["samples"], "plain")
    assert (speed.low, speed.high) == pytest.approx((2.0, 3.0))
    assert str(speed) == "2.50 (2.00 to 3.00)"
    fast, slow = ({"prepare": {"seconds": seconds}} for seconds in (2.0, 8.0))
    results.cold = {"ours": [seen(laps=fast)], "plain": [seen(laps=slow)]}
    assert figures.ratio(results, figures.MEASURES["cold"], "plain").middle == 4.0
    assert figures.ratio(results, figures.MEASURES["warm"], "plain") is None


def shown(tuned: float, again: float = 0.001) -> Results:
    laps = {"prepare": {"seconds": 0.1}, "evaluate": {"seconds": 2.0, "examples": 4}}
    ours, slow = seen(laps=laps, exact_match=50.0, f1=60.0), {"prepare": {"seconds": 4.0}}
    trained = {"ours": [ours], "plain": [seen(0.0016, laps=laps)], "tuned": [seen(tuned)], AGAIN: [seen(again)]}
    starts = {"ours": [ours], "plain": [seen(laps=slow)], "tuned": [seen(laps=slow)]}
    return Results("squad", trained, starts, starts, difference=1e-7, postprocess=[(1.1, 0.1), (1.2, 0.1)])


def test_floors_are_reached_missed_or_noise():
    said = "\n".join(figures.floors(shown(0.0011)))
    assert said.count("reached") == 7
    assert "| training at least 1.5 x plain | 1.60 (1.60 to 1.60) | reached |" in said
    assert "| post-processing alone at least 10 x the loop | 11.50 (11.00 to 12.00) | reached |" in said
    assert "0.10 s of 4.00 s | reached |" in said
    assert "1.0 x tuned | 0.90 (0.90 to 0.90) | missed |" in "\n".join(figures.floors(shown(0.0009)))
    assert "| 0.98 (0.98 to 0.98) | noise |" in "\n".join(figures.floors(shown(0.00098)))
    noisy = "\n".join(figures.floors(shown(0.0009, again=0.00105)))
    assert noisy.count("noise: ours against ours is 1.050") == 3


def test_a_void_task_has_no_figures(tmp_path, capsys):
    void = Results("imdb", void="the loss of plain at step 3 is 1.0, of ours 2.0")
    bench.report(bench.read_options(["--data", str(tmp_path)]), [void])
    said = capsys.readouterr().out
    assert said.startswith(f"\nVoid: {void.void}\n\n`make bench`, ")
    assert "|" not in said


def test_tables_have_every_measure_and_the_quality():
    table = figures.table(shown(0.0011))
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(figures.MEASURES) + 1 + 2
    assert "| f1 after it | 60.000 | - | - | - | - | - |" in table


def test_equal_work_is_equal_batches_and_equal_losses():
    ours = {"inputs": [[2, 20, 18], [2, 16, 16]], "losses": [1.0, 0.5]}
    padded = {"inputs": [[2, 64, 18], [2, 64, 16]], "losses": [1.00005, 0.5]}
    assert equality.compare({"ours": ours, "plain": padded}) == (pytest.approx(5e-5), "")
    wrong = padded | {"losses": [1.0, 0.501]}
    assert (
        equality.compare({"ours": ours, "plain": wrong})[1]
        == "the loss of plain at step 2 is 0.501000, of ours 0.500000"
    )
    assert "at step 1 is nan" in equality.compare({"ours": ours, "plain": padded | {"losses": [float("nan"), 0.5]}})[1]
    other = padded | {"inputs": [[2, 64, 16], [2, 64, 18]]}
    assert equality.compare({"ours": ours, "plain": other}) == (None, "plain did not train on the same batches")


def test_turns_rotate():
    assert ["".join(rotated("ABC", turn)) for turn in range(4)] == ["ABC", "BCA", "CAB", "ABC"]


def test_contestants_get_the_same_words(tmp_path):
    work = Work("squad", tmp_path, 8, 384)
    check = Call("ours", "many", 20, start_only=True, batch=2, check=True)
    ours = words(work, check, tmp_path / "ours")
    recipe = json.loads(Path(ours[4]).read_text())
    plain = words(work, replace(check, contestant="plain", order=Path("order")), tmp_path / "plain")
    tuned = words(work, Call("tuned"), tmp_path / "tuned")
    given = dict(zip(plain[2::2], plain[3::2], strict=False))
    assert given["--model"] == recipe["model"]["name_or_path"] == str(work.model_without_dropout)
    assert given["--train"] == recipe["data"]["train"]["path"] == str(work.rows("many"))
    assert given["--batch"] == "2"
    assert recipe["training"]["global_batch_size"] == 2
    assert {"--mask-padding", "--start-only", "--order"} <= set(plain)
    assert "--tuned" not in plain
    assert "--tuned" in tuned
    assert not {"--mask-padding", "--start-only", "--order"} & set(tuned)
    assert tuned[tuned.index("--model") + 1] == str(work.model)


def test_rows_are_converted_for_the_example_scripts(tmp_path):
    review, pair = {"id": "1", "text": "a film", "label": 1}, {"id": "1", "prompt": "Why?", "completion": "So."}
    assert json.loads(examples.converted(Work("imdb", tmp_path, 8, 256), [review])) == {"text": "a film", "label": 1}
    assert json.loads(examples.converted(Work("squad", tmp_path, 8, 384), [review]))["data"] == [review]
    text = json.loads(examples.converted(Work("medquad", tmp_path, 8, 256), [pair]))["text"]
    assert text == "Input: Why?\nOutput: So."


@pytest.mark.parametrize(
    ("task", "flags"),
    [("imdb", "--text_column_names text"), ("squad", "--version_2_with_negative"), ("medquad", "--block_size 256")],
)
def test_the_example_scripts_are_called_as_they_expect(tmp_path, task, flags):
    work = Work(task, tmp_path, 8, 256)
    line = " ".join(examples.words(work, Path("run.py"), tmp_path, tmp_path / "out", 8, 6, "cpu"))
    assert flags in line
    assert f"--train_file {tmp_path / 'few.json'}" in line
    assert "--do_train --do_eval" in line
    assert "--use_cpu" in line
    assert "--bf16" in " ".join(examples.words(work, Path("run.py"), tmp_path, tmp_path / "out", 8, 6, "cuda"))


def test_mfu_counts_what_is_multiplied_and_real_tokens_only(tmp_path, capsys):
    import transformers

    shape = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**shape, intermediate_size=32, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config)
    total, looked_up = on_gpu.weights_of(model)
    assert looked_up == 100 * 16  # the output layer, of the same size, is multiplied
    assert total == sum(parameter.numel() for parameter in model.parameters())
    config.save_pretrained(tmp_path)
    on_gpu.main(tmp_path, "cpu")
    told = json.loads(capsys.readouterr().out)
    assert told["multiplied"] == total - looked_up
    assert told["peak"] > 1e8
    told |= {"peak": 1e9}
    assert on_gpu.flops_per_token(told, 10.0) == 6.0 * told["multiplied"] + 12 * 2 * 16 * 10.0 / 2
    results = Results("medquad", {"ours": [seen(0.001)], "plain": [seen(0.002)]})
    ours, plain = on_gpu.lines("a model", told, results)
    share = 980.0 * on_gpu.flops_per_token(told, 196 / 8) / 1e9
    assert ours == f"| a model | ours | 40.00 | 980 | {share:.1%} | 1.00 GB | - |"
    assert plain.endswith("| 2.00 (2.00 to 2.00) |")


def test_a_crash_names_its_last_line_and_its_log(tmp_path):
    own = contestants.environment(tmp_path, "cpu", 1)
    code = "print('so far'); raise SystemExit('no such column')"
    with pytest.raises(Crash, match=r"plain answered 1: no such column \(all it said: .*out.log\)"):
        Process([sys.executable, "-c", code], own, tmp_path / "out", 60, "plain").run()
    with pytest.raises(Crash, match="was ended by signal 9 after"):
        Process([sys.executable, "-c", "import time; time.sleep(60)"], own, tmp_path / "late", 1, "plain").run()


def test_the_probe_leaves_an_ordinary_process_alone(tmp_path):
    own = contestants.environment(tmp_path, "cpu", 1)
    code = "import sys; print('torch' in sys.modules)"
    found = Process([sys.executable, "-c", code], own, tmp_path / "out", 60, "nobody").run()
    assert (tmp_path / "out.log").read_text() == "False\n"
    assert found.probe["steps"] == []
    assert found.peak_bytes > 10**6


STEPS = """
import json, os, sys, time
from pathlib import Path
import sitecustomize as probe

begun = probe.clock()
for step in range(int(sys.argv[2]) + 1):
    if step:
        with Path("steps").open("a") as file:
            file.write(f"{sys.argv[1]}{step} ")
        time.sleep(float(sys.argv[3]))
        probe.SEEN["steps"].append(probe.clock() - begun)
    if step < int(sys.argv[2]):
        probe.next_turn()
if sys.argv[1] == "c":
    sys.exit("c is over")
"""


def test_steps_are_made_in_turn_and_clocks_stand_meanwhile(tmp_path):
    """One that takes long takes no time of the others; one that fails leaves them to go on; none is left."""
    own = contestants.environment(tmp_path, "cpu", 1)

    def process(name, steps, seconds):
        line = [sys.executable, "-c", STEPS, name, str(steps), str(seconds)]
        return Process(line, own, tmp_path / name, 60, name)

    a, b, c = in_turn([process("a", 3, 0.0), process("b", 3, 1.0), process("c", 1, 0.0)])
    assert (tmp_path / "steps").read_text().split() == ["a1", "b1", "c1", "a2", "b2", "a3", "b3"]
    assert isinstance(c, Crash)
    assert "c answered 1: c is over" in str(c)
    assert isinstance(a, Seen)
    assert isinstance(b, Seen)
    assert len(a.probe["steps"]) == 3
    assert a.probe["steps"][-1] < 2.0 < b.probe["steps"][-1]  # a waited for 2 steps of b, of a second each
    code = "import time; time.sleep(60)"
    late = Process([sys.executable, "-c", code], own, tmp_path / "late", 0.5, "late")
    (found,) = in_turn([late])
    assert "was ended by signal 9 after" in str(found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_no_process(tmp_path, number):
    child = "import os, subprocess; p = subprocess.Popen(['sleep', '300'])"
    child += "; open('pids', 'w').write(f'{os.getpid()} {p.pid} '); p.wait()"
    code = f"""
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
sys.path[:0] = [{str(SPEED)!r}, {str(SPEED.parent)!r}]
import bench, contestants, processes
here = Path({str(tmp_path)!r})
own = contestants.environment(here, "cpu", 1)
def measure(*_):
    processes.Process([sys.executable, "-c", {child!r}], own, here / "out", 300, "ours").run()
bench.measure_tasks = measure
data = here / "medquad" / "medquad.jsonl"
data.parent.mkdir()
data.touch()
sys.exit(bench.main(["--tasks", "medquad", "--data", str(here), "--base", str(here), "--work", str(here / "work")]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = tmp_path / "pids"
    until = time.monotonic() + 120
    while not (pids.exists() and pids.read_text().endswith(" ")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(number)
    assert "stopped" in process.communicate(timeout=60)[0]
    assert process.returncode == 130
    left = [int(pid) for pid in pids.read_text().split()]
    until = time.monotonic() + 20
    while any(runs(pid) for pid in left):
        assert time.monotonic() < until, "a process is left"
        time.sleep(0.1)


def runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not asked for yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_quick_run_says_so(tmp_path):
    usual = bench.read_options(["--data", str(tmp_path)])
    assert "quick" not in bench.conditions(usual)
    assert "**a quick run**" in bench.conditions(bench.read_options(["--data", str(tmp_path), "--steps", "3"]))
    assert bench.read_options(["--data", str(tmp_path), "--device", "cuda"]).models == list(on_gpu.MODELS)


@pytest.mark.parametrize("given", [["--steps", "0"], ["--tasks", "mnli"], ["--examples", "nowhere"], ["--page"]])
def test_bad_options_are_refused(tmp_path, given):
    (tmp_path / "page.md").write_text("<!-- speed-imdb -->")
    given = [*given, str(tmp_path / "page.md")] if given == ["--page"] else given
    with pytest.raises(SystemExit) as ended:
        bench.read_options(["--data", str(tmp_path), *given])
    assert ended.value.code == 2


def test_missing_data_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"medquad.jsonl is missing; docs/data.md says"):
        bench.main(["--data", str(tmp_path), "--tasks", "medquad"])
