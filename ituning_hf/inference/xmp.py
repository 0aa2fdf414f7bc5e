"""Read and replace the description (`dc:description`) in an XMP packet."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from ..utils.errors import UserError

_DC = "http://purl.org/dc/elements/1.1/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_ELEMENT = (
    f'<dc:description xmlns:dc="{_DC}" xmlns:rdf="{_RDF}"><rdf:Alt>'
    '<rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description>'
)
_BLOCK = f'<rdf:Description rdf:about={{}} xmlns:rdf="{_RDF}">{{}}</rdf:Description>\n'
EMPTY_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    f'<rdf:RDF xmlns:rdf="{_RDF}">\n</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>\n'
).encode()

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_QUOTED = rb"(?:\"[^\"]*\"|'[^']*')"
_REST_OF_TAG = rb"(?:" + _QUOTED + rb"|[^\"'>])*?"
_ENCODING = re.compile(rb"<\?xml\b[^>]*\bencoding\s*=\s*[\"']([\w.-]+)")
_PREFIX = re.compile(rb"xmlns:([\w.-]+)\s*=\s*[\"']" + re.escape(_DC.encode()) + rb"[\"']")
_EMPTY_RDF = re.compile(rb"<([\w.-]+:RDF)\b(" + _REST_OF_TAG + rb")/>")
_RDF_END = re.compile(rb"</[\w.-]+:RDF\s*>")


def get_description(packet: bytes) -> str:
    """Return the description in an XMP packet, "" if there is none.

    Raises:
        UserError: It is not an XMP packet.
    """
    blocks = _blocks(packet)
    texts = [block.get(f"{{{_DC}}}description", "") for block in blocks]  # a short form of the element
    texts += ["".join(found.itertext()) for block in blocks for found in block.iter(f"{{{_DC}}}description")]
    return " ".join(" ".join(texts).split())


def set_description(packet: bytes, text: str) -> bytes:
    """Replace the description in an XMP packet; every other byte stays.

    The packet is edited as text, because ElementTree would change prefixes, whitespace and comments.

    Raises:
        UserError: It is not an XMP packet, or is written in an unusual way.
    """
    about = next((block.get(f"{{{_RDF}}}about", "") for block in _blocks(packet)), "")
    text = " ".join(_NOT_XML.sub("\ufffd", text).split())
    element, encoding = _ELEMENT.format(escape(text)), _ENCODING.search(packet)
    block = _BLOCK.format(quoteattr(about), element)

    def encode(content: str) -> bytes:
        is_utf8 = encoding is None or encoding[1].lower() == b"utf-8"
        return content.encode("utf-8" if is_utf8 else "ascii", "xmlcharrefreplace")

    name = rb"((?:" + rb"|".join({*_PREFIX.findall(packet)}) + rb"):description)\b"
    packet = re.sub(rb"\s" + name + rb"\s*=\s*" + _QUOTED, b"", packet)
    old = re.compile(rb"<" + name + _REST_OF_TAG + rb"(?:/>|>.*?</\1\s*>)", re.DOTALL)
    if found := old.search(packet):
        before, after = packet[: found.start()], packet[found.end() :]
        packet = before + encode(element) + old.sub(b"", after)
    else:
        packet = _EMPTY_RDF.sub(rb"<\1\2></\1>", packet)
        end = [0, *(match.start() for match in _RDF_END.finditer(packet))][-1]
        packet = packet[:end] + encode(block) + packet[end:]
    if get_description(packet) != text:
        raise UserError("has a dc:description that cannot be replaced")
    return packet


def _blocks(packet: bytes) -> list[ElementTree.Element]:
    """Return the packet's elements rdf:Description, each with a part of its properties."""
    try:
        root = ElementTree.fromstring(packet)
    except ElementTree.ParseError as error:
        raise UserError(f"is not XMP ({error})") from error
    found = list(root.iter(f"{{{_RDF}}}RDF"))
    if not found:
        raise UserError("is not XMP (it has no rdf:RDF element)")
    return found[0].findall(f"{{{_RDF}}}Description")
