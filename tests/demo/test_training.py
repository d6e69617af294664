"""The training: a few steps at tiny size, interrupted and resumed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import FluxPipeline

from quantolab.demo.making import card, guidance, loop, train
from quantolab.demo.making.denoiser import Denoiser, pack
from quantolab.demo.making.words import LENGTH, word_tokenizer

TINY = ["--pictures", "8", "--vae-width", "8", "--batch", "2", "--width", "64"]
TINY += ["--singles", "1", "--threads", "1", "--preview-every", "100", "--decoder-steps", "1"]
TINY += ["--weak-step", "1", "--guided-steps", "2", "--reader-steps", "2"]


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _train(folder, vae_steps, steps):
    places = ["--out", str(folder / "out"), "--work", str(folder / "work")]
    train.main([*places, *TINY, "--vae-steps", str(vae_steps), "--steps", str(steps)])


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a training that was made for two steps."""
    folder = tmp_path_factory.mktemp("training")
    _train(folder, 1, 2)
    return folder


def test_an_interrupted_training_goes_on(begun, tmp_path, capfd):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    first = torch.load(tmp_path / "work" / "denoiser.pt")["step"]
    _train(tmp_path, 1, 3)
    kept = torch.load(tmp_path / "work" / "denoiser.pt")
    assert (first, kept["step"]) == (2, 3)
    assert "denoiser 3/3" in capfd.readouterr().out
    assert torch.load(tmp_path / "work" / "reader.pt")["step"] == 2
    # Each state of the model is taught its own guidance.
    guided = [torch.load(tmp_path / "work" / f"guided-{steps}.pt") for steps in (2, 3)]
    assert [state["step"] for state in guided] == [2, 2]
    record = json.loads((tmp_path / "work" / "record.json").read_text())
    assert record["steps"] == 3 and record["seed"] == 0
    pipe = FluxPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a red heart", width=32, height=32, num_inference_steps=1, max_sequence_length=LENGTH
    ).images[0]
    assert image.size == (32, 32)


@pytest.mark.sweep
def test_text_encoders_of_an_earlier_pipeline_stay_as_they_are(tmp_path):
    _train(tmp_path / "first", 1, 1)
    start = ["--start", str(tmp_path / "first" / "out"), "--reader-steps", "0"]
    train.main(["--out", str(tmp_path / "out"), *TINY, *start, "--steps", "1"])
    for part in ("text_encoder", "text_encoder_2"):
        first, second = (
            (folder / part / "model.safetensors").read_bytes()
            for folder in (tmp_path / "first" / "out", tmp_path / "out")
        )
        assert first == second, part


def test_text_encoders_must_come_from_somewhere(capsys):
    with pytest.raises(SystemExit, match="2"):
        train.arguments(["--out", "anywhere", "--reader-steps", "0"])
    assert "needs --start" in capsys.readouterr().err


def test_guidance_goes_away_from_the_weaker_model():
    good, weak = (
        (lambda *inputs: torch.tensor([1.0, 2.0])),
        (lambda *inputs: torch.tensor([1.0, 1.0])),
    )
    for scale, expected in ((1, [1.0, 2.0]), (2, [1.0, 3.0]), (3, [1.0, 4.0])):
        assert guidance.guided(good, weak, scale)(None, None, None).tolist() == expected


def test_the_average_swaps_back():
    layer = torch.nn.Linear(2, 2)
    average = loop.Average(layer.parameters())
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    average.update(1000, 0.9)
    average.swap()
    torch.testing.assert_close(layer.weight, before + 0.1)
    average.swap()
    torch.testing.assert_close(layer.weight, before + 1)


def test_the_learning_rate_rises_and_falls():
    rates = [loop.learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert max(rates) > 0.95 and rates[0] < 0.05 and rates[-1] < 0.02


def test_pack_folds_as_flux_does():
    latents = torch.randn(2, 12, 16, 16)
    theirs = FluxPipeline._pack_latents(latents, 2, 12, 16, 16)
    torch.testing.assert_close(pack(latents), theirs)


def test_the_model_starts_still():
    model = Denoiser(12, width=64, singles=1).eval()
    tokens = word_tokenizer()(["a red heart"], padding="max_length", return_tensors="pt").input_ids
    velocity = model(torch.randn(1, 64, 48), torch.tensor([0.5]), tokens)
    assert not velocity.any()


def test_the_card_tells_all(begun, tmp_path):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    record = json.loads((tmp_path / "work" / "record.json").read_text())
    scores = {
        "prompts": 60,
        "weights": {
            "bfloat16": {"score": 0.97, "psnr": None},
            "int8": {"score": 0.96, "psnr": 40.0},
        },
        "families": {"house": [9, 10]},
    }
    card.write_card(tmp_path / "out", record, scores)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "house 9 of 10" in text
    assert "97.0%" in text and "40.0 dB" in text and "apache-2.0" in text
    assert str(tmp_path) not in text
