"""Turkish practice data: instructions built from gold-annotated sentences.

`build_instructions` turns the packaged treebanks into two tasks, noun inflection and
restoring diacritics, split so that nothing leaks, with a data card. The orthography
(`fold`, `lower`) is of use for any Turkish text.
"""

from ince.data.turkish.diacritics import DiacriticsRow, build_fragments
from ince.data.turkish.inflection import Inflection, build_inflections
from ince.data.turkish.instructions import InstructionSet, build_instructions
from ince.data.turkish.orthography import fold, lower
from ince.data.turkish.treebank import Sentence, Token, parse_conllu, read_treebanks

__all__ = [
    "DiacriticsRow",
    "Inflection",
    "InstructionSet",
    "Sentence",
    "Token",
    "build_fragments",
    "build_inflections",
    "build_instructions",
    "fold",
    "lower",
    "parse_conllu",
    "read_treebanks",
]
