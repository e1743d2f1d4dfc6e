"""Why a toolkit's score differs from ours, by toolkit function and form of the response."""

from __future__ import annotations

_WHOLE = "they compare the whole response with the letter"
_GUESS = "they find no letter and guess one of the options at random"
_WIDE = "full-width characters are the same characters (Unicode NFKC) to us only"
_ONLY_WORD = "they take nothing but the bare word"

_CHARTQA = {
    "another year": "5 % of a year is a century: where a year is asked for we want that year",
    "thousands separators": "they cannot read a number with commas and compare text",
    "number word": "they compare number words as text",
    "text with final period": "they compare text with its final period",
    "text with white space": "they compare text with the white space around it",
    "text in quotes": "they compare text with its quotes",
    "currency": "they cannot read a number with a currency sign",
    "percent sign": "they divide by 100; charts and models write 45 % with and without the sign",
    "percent sign after a space": "as percent sign; a space at the end hides the sign from them",
    "final period": "`18.9.` is no float",
    "Unicode minus": "they do not know the minus sign U+2212",
    "zero in decimals": "to them a gold 0 is no number, so `0.0` is other text",
    "full-width digits": "a full-width period makes it no float to them",
    "scale word": "they do not know million and thousand",
    "5 % off exactly": "in floats 5 % can come out above 0.05; the definition says within",
    "underscore": "Python reads `1_6.7` as 16.7; nobody else does",
}
_ANLS = {
    "letters that grow in upper case": (
        "they divide by the length in capitals, where \u00df is SS, and measure in small letters"
    ),
    "letters off, white space after": (
        "they divide by a length that counts white space, which the distance does not"
    ),
    "white space within": "they divide by a length that counts white space the distance does not",
}
_EMPTY = "a, an and the are all dropped, so to them every article is the same (empty) answer"
_PERIODS = "they remove 32 periods at most: a flag of `re.sub` stands where its count belongs"
_VQA = {
    "forty periods": _PERIODS,
    "capitals and period": _EMPTY,
    "as written": _EMPTY,
    "question mark": _EMPTY,
    "with an article": _EMPTY,
    "an article alone": _EMPTY,
    "punctuation between": _EMPTY,
    "slash": _EMPTY,
    "new line": _EMPTY,
    "quotes of a letter": _EMPTY,
}
_NAMES_BOTH = "names one option by letter and another by text: no answer to us"
_MMMU = {
    "text": _GUESS + " (text counts from six words on)",
    "text with final period": _GUESS + " (text counts from six words on)",
    "full-width letter": _WIDE + "; " + _GUESS,
    "small letter": _GUESS + ": small letters are none",
    "letter and what it is not": "of two letters they take the one that stands last",
    "letter of one, text of another": _NAMES_BOTH,
    "I": _GUESS,
    "answer in bold": "a letter between asterisks is none to them; " + _GUESS,
    "opening article": 'they take the "A" of the sentence for option A',
    "no option": _GUESS,
    "boxed": "a letter in braces is none to them; " + _GUESS,
    "empty of words": _GUESS,
    "letter beyond": _GUESS,
    "denied": _GUESS,
    "two letters": "of two letters they take the one that stands last",
    "text in a sentence": "an option that is part of another is found as well, and may come last",
}
_SCIENCEQA: dict[str, str] = dict.fromkeys(
    (
        "the answer is", "text", "letter in brackets", "text with final period",
        "bracketed letter and reason", "text in a sentence", "full-width letter", "I",
        "letter and what it is not", "opening article", "answer in bold", "boxed",
    ),
    "they take a lone letter, or a capital and period that open the response",
)  # fmt: skip
_SCIENCEQA["letter of one, text of another"] = _NAMES_BOTH
_SCIENCEQA["letter and text"] = _NAMES_BOTH
_INFER = {
    "bracketed letter and reason": "they want the letter among the last four words",
    "full-width letter": _WIDE,
    "small letter": "small letters are none to them",
    "letter of one, text of another": _NAMES_BOTH,
    "letter and what it is not": "two letters are no answer to them, whatever is said of each",
    "opening article": 'they take the "A" of the sentence for option A, or for too little',
    "denied": 'to them "It is not a dog" says dog',
    "letter and text": "an option that is part of another is found as well",
    "text in a sentence": "an option that is part of another is found as well",
    "text": "an option that is part of another is found as well",
    "text with final period": "an option that is part of another is found as well",
}
_MME = {
    "answer is": "they look at the first four letters of the response",
    "no inside a word": 'they look for "no" within the first four letters: `Know`, `Snow`',
    "yes inside a word": 'they look for "yes" within the first four letters: `eyes`',
    "both": "they take what stands within the first four letters; to us it is no answer",
    "full-width": _WIDE,
    "bold": "asterisks fill the first four letters",
    "there is no": "they look at the first four letters of the response",
    "other text": 'they look for "no" within the first four letters: `north`',
    "not sure": 'they look for "no" within the first four letters: `Not sure`',
}
_POPE: dict[str, str] = dict.fromkeys(
    (
        "word and sentence", "answer is", "final period", "new line and sentence", "one letter",
        "bold", "opens with one, goes on with the other", "there is no", "exclamation mark",
    ),
    _ONLY_WORD,
) | {"full-width": _WIDE}  # fmt: skip
_YES_NO = {
    "one letter": "one letter is no word to them",
    "bold": "asterisks are no punctuation to them, so the word is another",
    "full-width": _WIDE,
    "opens with one, goes on with the other": "they want only one of the two words anywhere",
    "no doubt": 'to them "no doubt" says no',
}

_BY_FUNCTION: dict[str, dict[str, str]] = {
    "lmms-eval: chartqa": _CHARTQA,
    "VLMEvalKit: ChartQA": _CHARTQA,
    "lmms-eval: anls": _ANLS,
    "VLMEvalKit: DocVQA": _ANLS,
    "lmms-eval: vqav2": _VQA,
    "lmms-eval: textvqa": _VQA,
    "VLMEvalKit: VQA score": _VQA
    | {"capitals and period": "they keep a period after a digit (`12.`); and " + _EMPTY},
    "lmms-eval: mmmu": _MMMU,
    "lmms-eval: scienceqa": _SCIENCEQA,
    "VLMEvalKit: can_infer": _INFER,
    "lmms-eval: mme": _MME,
    "lmms-eval: pope": _POPE,
    "VLMEvalKit: YOrN_Extraction": _YES_NO,
    "VLMEvalKit: accuracy": {"text in another case": "they fold case; the rule `exact` does not"},
}


def explanation(theirs: str, form: str) -> str:
    """Why this function differs on such responses; "" where nobody has said."""
    return _BY_FUNCTION.get(theirs, {}).get(form, "")
