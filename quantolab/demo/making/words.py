"""The demo model's tokenizer: one token per word of the grammar."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .drawing import vocabulary

LENGTH = 24
"""Tokens a caption is padded to; the longest caption has 15 words."""

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer that knows the words of the grammar and maps all others to ``<unk>``.

    Case and punctuation do not matter. Both text encoders of the pipeline use it.
    """
    words = [PAD, END, UNKNOWN, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^a-z]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, words.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=LENGTH,
    )
