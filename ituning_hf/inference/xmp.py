"""Read and replace the description (`dc:description`) in an XMP packet."""

from __future__ import annotations

import re
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from ..utils.errors import UserError

_DC = "http://purl.org/dc/elements/1.1/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_BLOCK = f'<rdf:Description xmlns:rdf="{_RDF}" rdf:about=""/>'
_DESCRIPTION = f'<dc:description xmlns:dc="{_DC}"/>'
_LI = f'<rdf:li xmlns:rdf="{_RDF}" xml:lang="x-default"/>'
_ALT = f'<rdf:Alt xmlns:rdf="{_RDF}">{_LI}</rdf:Alt>'
EMPTY_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    f'<rdf:RDF xmlns:rdf="{_RDF}">\n</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>\n'
).encode()

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# References to characters, such as &#10; for a line break in an attribute, are hidden from minidom in this
# form: it would write the line break, which parsers change to a space.
_HIDDEN = "\x7f#"

_Node = Any  # minidom has no annotations


def get_description(packet: bytes) -> str:
    """Return the description in an XMP packet: the default text, or else those in all languages, or "".

    Raises:
        UserError: It is not an XMP packet.
    """
    _, blocks, descriptions = _parse(packet)
    texts = [block.getAttributeNS(_DC, "description") for block in blocks]  # a short form of the element
    for found in descriptions:
        nodes = [child for text in _texts(found) or [found] for child in text.childNodes]
        texts += [getattr(node, "data", "") for node in nodes]
    return " ".join(" ".join(texts).split())


def set_description(packet: bytes, text: str) -> bytes:
    """Replace the default or only text of the description in an XMP packet, and return it in UTF-8.

    Everything else stays: other languages, comments, prefixes, processing instructions.

    Raises:
        UserError: It is not an XMP packet.
    """
    document, blocks, descriptions = _parse(packet.replace(b"&#", _HIDDEN.encode()))
    for block in blocks:
        if block.hasAttributeNS(_DC, "description"):
            block.removeAttributeNS(_DC, "description")
    found = descriptions[0] if descriptions else blocks[0].appendChild(_element(_DESCRIPTION))
    if not _texts(found):  # it is empty, or a text without a language
        found.childNodes.clear()
        found.appendChild(_element(_ALT))
    first, *others = _texts(found)
    default = first.parentNode.insertBefore(_element(_LI), first) if others else first
    default.childNodes.clear()
    default.appendChild(document.createTextNode(" ".join(_NOT_XML.sub("\ufffd", text).split())))
    declaration = ['<?xml version="1.0" encoding="UTF-8"?>'] if document.version else []
    parts = [*declaration, *(node.toxml() for node in document.childNodes), ""]
    return "\n".join(parts).replace(_HIDDEN, "&#").encode()


def _parse(packet: bytes) -> tuple[_Node, list[_Node], list[_Node]]:
    """Return the document, its elements rdf:Description (at least one), and those dc:description."""

    def children(node: _Node, *name: str) -> list[_Node]:
        return [child for child in node.childNodes if (child.namespaceURI, child.localName) == name]

    try:
        document = minidom.parseString(packet)
        found = document.getElementsByTagNameNS(_RDF, "RDF")
    except (ExpatError, LookupError, RecursionError, ValueError) as error:  # also of the encoding
        raise UserError(f"is not XMP ({error})") from error
    if not found:
        raise UserError("is not XMP (it has no rdf:RDF element)")
    blocks = children(found[0], _RDF, "Description") or [found[0].appendChild(_element(_BLOCK))]
    return document, blocks, [x for block in blocks for x in children(block, _DC, "description")]


def _texts(description: _Node) -> list[_Node]:
    """Return the element rdf:li with the default text, or else those in all languages."""
    found = description.getElementsByTagNameNS(_RDF, "li")
    return [text for text in found if text.getAttribute("xml:lang") == "x-default"] or found


def _element(xml: str) -> _Node:
    return minidom.parseString(xml).documentElement
