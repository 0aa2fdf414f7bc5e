r"""The tokenizer of the COCO caption metrics, without Java.

The official scores tokenize with Stanford's `PTBTokenizer -preserveLines -lowerCase` and then remove
punctuation. The rules below were found by comparing outputs for captions and for enumerated and random
strings. As in a lexer, the rule with the longest match wins, and the first of equal length; the context
matched after a token counts into its length.

Of 19,375 captions of Flickr8k and rendered scenes none differs from the official tokenizer's output; of
225,000 with words changed, joined, in other case, or with inserted characters 20 differ; of 378,057 sentences
of software documentation 273. Known differences: HTML comments and tags of several words, addresses without a
dot (http://localhost), one character in brackets with an apostrophe or a sign "(x')", "conn.c", "va.n", "&x;"
with no such entity, telephone numbers of four groups or after a comma, "@" twice in a word, curly quotes next
to backticks, accented letters next to an apostrophe or in compounds (o'é, 3.5-é), a no-break or ideographic
space next to an address, and rare scripts.
"""

# ruff: noqa: RUF001 -- similar characters are intended in this file

import re
from collections.abc import Iterator, Sequence

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that the metrics ignore. Brackets are not among them: the official list has "-LRB-", which never
equals the lower-cased "-lrb-", and published scores were computed in this way."""

_CURLY = {"‘": "`", "’": "'", "“": "``", "”": "''"}
_SPELLINGS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "¢": "cents",
    "£": "#",
    **dict.fromkeys("€¤₠\x80", "$"),
    "¼": "1/4",
    "½": "1/2",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    **dict.fromkeys('"«»‛‹›\x91\x92\x93\x94', "'"),  # any quotation mark will do,
    **dict.fromkeys("–—―\x96\x97", "--"),  # since they are removed later, like dashes and ellipses
    **dict.fromkeys(["…", "....", ".....", ". . ."], "..."),
    **dict.fromkeys(["---", "----"], "--"),
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    **dict.fromkeys(["&quot;", "&nbsp;"], "'"),
    "n’t": "n't",
    "n‘t": "n`t",
    **{f"’{clitic}": f"'{clitic}" for clitic in ("s", "m", "d", "ll", "re", "ve")},
    **{
        first + second: before + after
        for first, before in {"": "", **_CURLY}.items()
        for second, after in _CURLY.items()
    },
}
"""The output for whole tokens in lower case."""

# Words that keep a full stop; words that keep it only if capitalized; words that keep it before a number;
# words that begin a sentence, before which initials lose their full stop.
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif
    capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq
    est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan
    kans ky lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl
    neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty ptys pvt rd rep
    reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas
    tue tues univ va vs vt wed wis wisc wm wyo"""
_CAPITALIZED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
_FILE_TYPES = """
    bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png
    ppt ps py sql tar txt wav x xml zip"""
_SENTENCE_STARTS = """
    A About According After An As At But Earlier He Her Here However If In It Last Many More Now
    Once One Other Our She Since So Some Such That The Their Then There These They This We What
    When While Yet You"""


def _any_case(words: str) -> str:
    return f"(?i:{'|'.join(words.split())})"


def _capitalized(words: str) -> str:
    return "|".join(f"{word}|{word.upper()}" for word in words.split())


_LETTERS = (
    "A-Za-zªµºÀ-ÖØ-öø-\u167f\u1681-\u1fff\u2c00-\u2dff\u3005-\u3007\u3040-\ud7ff\uf900-\ufdff"
    "\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"
)
_SIGNS = "!-~\x80\x91-\x97¡-¿×÷–-․…‧‰-⁞⁰-₎₠¤€℀-⯿、-〃"
_L = f"[{_LETTERS}]"
_A = f"[{_LETTERS}0-9]"
_Q = "['’]"
_ANY_Q = "['’`‘]"
_WORD = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"
_NUMBER = r"(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+)"
_FRACTION = r"\d{1,4}\\?/\d{1,4}"
_CLITIC = "(?:[sSmMdD]|ll|LL|re|RE|ve|VE)"
# O'Neil, l'eau: apostrophes that do not split a word
_PART = rf"(?:[dDlLoO]{_ANY_Q}[A-Za-z0-9]{{2,}}|{_A}+)"
_COMPOUND_START = rf"(?:{_PART}|[A-Za-z0-9][A-Za-z0-9.,]*(?=[-‐‑]))"
_COMPOUND_REST = rf"(?:[-_‐‑](?:{_PART}|[A-Za-z](?:\.[A-Za-z])+\.))"
_COMPANY = "[A-Z]+(?:[+&][A-Z]+)+"
_NAME = rf"(?:[dDlLoO]{_ANY_Q}[A-Za-z0-9]{{2,}}|[nN]{_ANY_Q}[A-Za-z]{{2,}}|[A-HJ-XZ]{_ANY_Q}[A-Za-z]{{2,}})"
_HOST = r"(?:[^\s\"`'<>|.!?,(){}$\--_]+\.)+"  # the original has a range, "-" to "_", by accident
_PATH = r"(?:/[^\s<>\"|()]+[^\s<>\"|.!?(){},-])"
_ABBREVIATION = rf"(?:{_any_case(_ABBREVIATIONS)}|{_capitalized(_CAPITALIZED)})\."
_TAG = r"</?[A-Za-z][\w:.-]* ?>"
_NEW_SENTENCE = rf"\s+(?:(?:{_capitalized(_SENTENCE_STARTS)})(?:\s|$)|{_TAG})|\s*$"

# The token is the group that matched, else the match.
_RULES = [
    # words in two: can|not, 't|is, could|n't
    rf"(?i:(can)not|(gon|wan)na|(got)ta|(lem|gim)me)(?!{_A})",
    r"('[tT])(?i:is|was)",
    r"([A-Za-z]*[A-MO-Za-mo-z])[nN]['`‘’][tT]",
    r"[nN]['`‘’][tT]",
    # it|'s, rock 'n' roll, the '80s
    rf"({_L}{_A}*){_Q}{_CLITIC}",
    rf"'{_CLITIC}(?![A-Za-z])|’{_CLITIC}",
    rf"{_Q}(?i:em|till?|cause)|{_Q}[nN]{_Q}|'[nN](?=\s|$)|’[nN]",
    rf"{_Q}[2-9]0[sS]|{_Q}\d\d(?=\s|$)",
    rf"[dDjJlL]{_Q}|(?i:ol|dunkin|somethin){_Q}|([yY]{_Q}){_L}",
    # words, compounds, abbreviations
    _WORD,
    _NAME,
    rf"[A-Za-z]+[aeiouyAEIOUY]{_ANY_Q}[aeiouA-Z][A-Za-z]*",
    rf"(?i:c{_ANY_Q}mon|c{_ANY_Q}est|e{_ANY_Q}er|o{_ANY_Q}o|cap{_ANY_Q}n|ev{_ANY_Q}ry|s{_ANY_Q}mores)",
    rf"{_A}+",
    rf"{_COMPOUND_START}{_COMPOUND_REST}+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    _COMPANY,
    rf"([A-Za-z])\.(?:{_NEW_SENTENCE})",
    rf"[A-Za-z](?:\.[A-Za-z])*\.|[pP]h\.[dD]\.|{_ABBREVIATION}",
    rf"{_any_case(_BEFORE_NUMBERS)}\.(?=\s?\d)",
    rf"((?:(?:{_WORD}|{_A}+)(?:-{_A}+)*|{_COMPOUND_START}{_COMPOUND_REST}*|{_COMPANY})\.)[,;:、]",
    rf"((?:[A-Za-z0-9]+\.)+{_any_case(_FILE_TYPES)})(?:[\s.?!,]|$)",
    # numbers, telephone numbers, money
    rf"[-+]?{_NUMBER}",
    rf"(?:\d{{1,4}}[- \xa0])?{_FRACTION}",
    r"(?:\(\d{2,3}\)[ \xa0]?|\d{2,4}[- \xa0])\d{3,4}[- .\xa0]\d{3,5}",
    r"[A-Z]+\$",
    # addresses, tags
    rf"[cC]\+\+|[cCfF]#|#{_L}+|@[A-Za-z_][A-Za-z0-9_]*",
    r"(?i:https?://[^\s<>\"|()]+\.[^\s<>\"|()]*[^\s<>\"|(),.!?])",
    rf"(?:(?i:www\.(?:[^\s<>\"|.!?(){{}},]+\.)+[a-z]{{2,4}})|{_HOST}(?i:com|net|org|edu)){_PATH}?",
    r"<?[A-Za-z0-9][^\s\"<>|(){}@]*@[^\s\"<>|(){}@.]+(?:\.[^\s\"<>|(){}@.]+)*>?",
    rf"<[!?][A-Za-z-][^>\n]*>|{_TAG}",
    r"<[A-Za-z][\w:.-]*(?: [A-Za-z][\w:.-]*(?:='[^'\n]*'|=\"[^\"\n]*\")?)* ?/?>",
    r"&(?:#\d+|[A-Za-z]{2,});",
    # signs
    r"[<>]?[:;=][-o*']?[()\[DPdpO@|\\{](?![A-Za-z0-9])|[:;=]-?\](?![A-Za-z0-9])|\^_\^|'_'|>_<|-_-",
    r"-[LRlr][RSCrsc][Bb]-",
    rf"\.{{3,5}}|\. \. \.|''|``|[‘’“”]{{1,2}}|#+|-+|>>|<<|[!?]+|_+|(?:\\?\*)+|@+|[{_SIGNS}]",
]
# The longest token with its context. Without a limit, a rule that searches for the end of an address would
# read a text without spaces to its end at each character.
_REACH = 300
_COMPILED_RULES = [re.compile(rule) for rule in _RULES]
# Most words of a caption: no rule splits them.
_PLAIN = re.compile(r"[^\S\n]*(?!(?i:cannot|gonna|wanna|gotta|lemme|gimme)\b)([A-Za-z]+)(?=\s|$)")


def tokenize_captions(captions: Sequence[str]) -> list[str]:
    r"""Tokenize captions as the official metrics do: lower case, no punctuation.

    The official tokenizer reads all captions as one text: the first word of the next caption decides whether
    "vitamin c." at the end of a caption keeps its full stop. So the order of the captions matters.

    Args:
        captions: Any strings. Line breaks count as spaces.

    Returns:
        The tokens of each caption, separated by spaces. A token may contain a no-break space, as in the
        official output: "1 1/2" and telephone numbers are one token.

    Example:
        >>> tokenize_captions(['A man\'s dog, "Rex", can\'t jump over the t.v.', "Two CATS!"])
        ["a man 's dog rex ca n't jump over the t.v.", 'two cats']
    """
    lines: list[list[str]] = [[] for _ in captions]
    number = 0
    for token in _tokens("\n".join(" ".join(caption.splitlines()) for caption in captions)):
        if token == "\n":
            number += 1
        elif token not in PUNCTUATION:
            lines[number].append(token)
    return [" ".join(line) for line in lines]


def _tokens(text: str) -> Iterator[str]:
    text = text.replace("\xad", "").replace("&apos;", "'")
    position = 0
    while position < len(text):
        if match := _PLAIN.match(text, position):
            yield match[1].lower()
            position = match.end()
            continue
        matches = [
            match for rule in _COMPILED_RULES if (match := rule.match(text, position, position + _REACH))
        ]
        if not matches:  # a space, a line end, or a character that the official tokenizer drops
            if text[position] == "\n":
                yield "\n"
            position += 1
            continue
        longest = max(matches, key=re.Match.end)
        token = longest[longest.lastindex or 0]
        position += len(token)
        token = _SPELLINGS.get(token.lower(), token.lower())
        yield token.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\xa0")
