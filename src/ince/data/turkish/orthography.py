"""Turkish letters: lower case with the right i, and folding to ASCII.

Python's ``str.lower`` is not Turkish: it makes ``İ`` two characters and ``I`` an ``i``.
These functions are for text known to be Turkish only. They expect NFC.
"""

__all__ = ["ALPHABET", "fold", "lower"]

# The 29 letters, and the circumflexes that tell hala (aunt) from hâlâ (still).
ALPHABET = "abcçdefgğhıijklmnoöprsştuüvyzâîû"

_FOLD = str.maketrans("çğıöşüâîûÇĞİÖŞÜÂÎÛ", "cgiosuaiuCGIOSUAIU")
_LOWER = str.maketrans("İI", "iı")


def lower(text: str) -> str:
    """Lower case by the Turkish rule: ``İ`` → ``i`` and ``I`` → ``ı``.

    >>> lower("IĞDIR İSTANBUL")
    'ığdır istanbul'
    """
    return text.translate(_LOWER).lower()


def fold(text: str) -> str:
    """Turkish letters to the ASCII ones typed in their place; length is kept.

    >>> fold("Çağdaş İzmir ılık")
    'Cagdas Izmir ilik'
    """
    return text.translate(_FOLD)
