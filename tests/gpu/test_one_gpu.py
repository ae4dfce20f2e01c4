"""Every engine on one GPU, through the real command line: pytest -m gpu tests/gpu."""

import math

import pytest
from gpu.commands import NO_GPU, NUM_GPUS, NUM_STEPS, PROFILES, evaluated_loss, launched, worst_difference
from integration.runs import curve

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 1, reason=NO_GPU)]

SIXTEEN_BIT = [*((engine, "bf16") for engine in PROFILES), ("single", "fp16"), ("ddp", "fp16"), ("zero2", "fp16")]
SAME_CURVE = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
CASES = [*SIXTEEN_BIT, ("single", "fp32"), ("single", "tf32"), *((engine, "fp32") for engine in SAME_CURVE)]
ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
TORCH_NAMES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LIMIT = 1e-5

each_case = pytest.mark.parametrize(("engine", "precision"), CASES)


@each_case
def test_what_was_asked_is_what_ran(engine, precision):
    ran = launched(engine, precision).engine
    assert (ran["name"], ran["world_size"], ran["precision"]) == (engine, 1, precision)
    assert ran["zero_stage"] == ZERO_STAGES.get(engine)
    assert ran["backend"] == (None if engine == "single" else "nccl")
    assert ran["device"].startswith("cuda")
    assert len(ran["devices"]) == 1
    assert ran["global_batch_size"] == 8
    # DeepSpeed holds the weights in the precision itself, the others in fp32.
    assert ran["dtype"] == (TORCH_NAMES[precision] if engine in ZERO_STAGES else "float32")


@each_case
def test_the_loss_is_a_number_at_every_step(engine, precision):
    steps = curve(launched(engine, precision).run)
    assert [step for step, _, _ in steps] == list(range(1, NUM_STEPS + 1))
    losses = [loss for _, loss, _ in steps]
    assert all(map(math.isfinite, losses))
    assert max(losses) > 1.02 * min(losses), "the losses must move"


@each_case
def test_plain_transformers_loads_the_saved_model(engine, precision):
    import torch
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        launched(engine, precision).run.model, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()


@each_case
def test_evaluate_reproduces_the_test_loss(engine, precision):
    done = launched(engine, precision)
    tolerance = LIMIT if precision == "fp32" else 1e-2
    assert evaluated_loss(done.run, precision) == pytest.approx(done.metrics["eval"]["loss"], rel=tolerance)


@pytest.mark.parametrize("engine", SAME_CURVE)
def test_every_engine_has_the_curve_of_one_process(engine):
    assert worst_difference(launched("single", "fp32").run, launched(engine, "fp32").run) <= LIMIT


@each_case
def test_the_peak_of_the_device_is_recorded(engine, precision):
    done = launched(engine, precision)
    assert done.metrics["train"]["peak_device_bytes"] > done.metrics["train"]["model_bytes"]
