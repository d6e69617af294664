"""What is said before a run: what the demo doesn't know, and that there is no reference."""

import re

import pytest

from quantolab.demo import PROMPTS
from quantolab.demo.knowing import FIGURES, known_words, nearest_words, unknown_words
from quantolab.demo.making.drawing import vocabulary
from quantolab.errors import Cancelled
from quantolab.experiments import comparing
from quantolab.run.asked import check_request
from quantolab.run.doubts import doubts
from quantolab.run.session import Progress


def asked(**changed):
    arguments = {"recipes": ["none", "int8"], "prompts": list(PROMPTS), **changed}
    return doubts(check_request("demo", **arguments))


def test_the_words_are_those_of_the_tokenizer():
    assert {*known_words()} <= {*vocabulary()}
    assert {*FIGURES} <= {*known_words()}
    assert unknown_words(PROMPTS) == ()
    assert unknown_words(["A red DOG, and a dog's tail"]) == ("dog", "s", "tail")
    assert nearest_words("sqare")[0] == "square"
    assert nearest_words("dog") == FIGURES


def test_what_is_asked_for_is_doubted_before_it_runs():
    assert asked() == ()
    (words,) = asked(prompts="a dog on the moon")
    assert re.search("doesn't know 'dog', .* circle ", words)
    (size,) = asked(size=(256, 128))
    assert "128x128, not 256x128" in size
    (reference,) = asked(recipes=["int8", "int4"])
    assert "add none to the weights" in reference


@pytest.mark.parametrize("watch", [None, lambda progress: None])
def test_compare_says_it_where_nobody_else_does(monkeypatch, capsys, watch):
    def begin(request, *, watch, **options):
        assert not capsys.readouterr().err  # what is refused by now has one line of its own
        watch(Progress("starting", None, 0, 1, 0.0, None))
        raise Cancelled("that is enough")

    monkeypatch.setattr(comparing, "run_comparison", begin)
    with pytest.raises(Cancelled):
        comparing.compare("demo", ["none"], "a dog", watch=watch)
    assert ("doesn't know 'dog'" in capsys.readouterr().err) is (watch is None)
