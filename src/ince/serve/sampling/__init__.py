"""How a server chooses tokens and shows them: options, the choice, log probabilities, text.

Nothing here knows requests or batches' order: what a row says depends on its logits, its options
and its seed alone, whoever shares its step.
"""

from ince.serve.sampling.choose import NO_TOKEN, RowState, choose
from ince.serve.sampling.grammar import Grammar, GrammarVocabulary
from ince.serve.sampling.logprobs import TokenLogprob, token_logprobs
from ince.serve.sampling.options import SamplingOptions
from ince.serve.sampling.text import TextStream

__all__ = [
    "NO_TOKEN",
    "Grammar",
    "GrammarVocabulary",
    "RowState",
    "SamplingOptions",
    "TextStream",
    "TokenLogprob",
    "choose",
    "token_logprobs",
]
