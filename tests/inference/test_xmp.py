"""The description in XMP packets, against an XML parser, exiftool and packets as programs write them."""

import json
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

from ituning_hf.inference.xmp import EMPTY_PACKET, get_description, set_description
from ituning_hf.utils.errors import UserError

TEXT = 'a dog & a "<b>" über 犬'
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
OLD = "<{0}:description><{1}:Alt><{1}:li xml:lang='x-default'>old</{1}:li></{1}:Alt></{0}:description>"

# As digiKam writes it: one element with attributes, an xpacket wrapper with padding.
DIGIKAM = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about=""
    xmlns:digiKam="http://www.digikam.org/ns/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="{DC}"
   xmp:Rating="4" digiKam:ColorLabel="0">
   <digiKam:TagsList><rdf:Seq><rdf:li>Animals/Dog</rdf:li></rdf:Seq></digiKam:TagsList>
   <dc:subject><rdf:Bag><rdf:li>dog</rdf:li></rdf:Bag></dc:subject>
   {OLD.format("dc", "rdf")}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
{" " * 100}
<?xpacket end="w"?>"""
# As darktable writes it: no wrapper, an XML declaration, no description.
DARKTABLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="{RDF}">
  <rdf:Description rdf:about=""
    xmlns:darktable="http://darktable.sf.net/" xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
   xmpMM:DerivedFrom="1.png" darktable:xmp_version="5" darktable:history_end="0"/>
 </rdf:RDF>
</x:xmpmeta>
"""
OTHER_PREFIXES = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="{RDF}"><!-- {TEXT} -->
<r:Description r:about="uuid:1&amp;2" xmlns:d='{DC}' d:title='a > b' d:description='old'/>
<r:Description r:about="uuid:1&amp;2" xmlns:d='{DC}'>{OLD.format("d", "r")}</r:Description>
</r:RDF></x:xmpmeta>"""
EMPTY_RDF = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'
# Other descriptions than the picture's own, and a line break in an attribute.
NESTED = DIGIKAM.replace(
    "<digiKam:TagsList>",
    f"""<!-- <dc:description/> --><xmp:Notes>dc:description="old" in a text</xmp:Notes>
    <xmp:Source><rdf:Description xmp:Lines="a&#xA;b">
     {OLD.format("dc", "rdf")}</rdf:Description></xmp:Source><digiKam:TagsList>""",
)
PACKETS = {
    "ours": EMPTY_PACKET,
    "digiKam": DIGIKAM.encode(),
    "darktable": DARKTABLE.encode(),
    "other prefixes": OTHER_PREFIXES.encode(),
    "default prefix": DIGIKAM.replace("dc:", "").replace("xmlns:dc", "xmlns").encode(),
    "empty": EMPTY_RDF.encode(),
    "nested": NESTED.encode(),
    "Latin-1": DARKTABLE.replace("UTF-8", "ISO-8859-1").replace("1.png", "Köter.png").encode("latin-1"),
    "UTF-16": DIGIKAM.encode("utf-16"),
}


def content(packet: bytes) -> list[tuple[str, dict[str, str], str]]:
    """Return everything in a packet but its own description, and blocks that have nothing else."""
    root = ElementTree.fromstring(packet)
    (rdf,) = root.iter(f"{{{RDF}}}RDF")
    for block in [*rdf]:
        block.attrib.pop(f"{{{DC}}}description", None)
        for element in block.findall(f"{{{DC}}}description"):
            block.remove(element)
        if not len(block) and not block.attrib.keys() - {f"{{{RDF}}}about"}:
            rdf.remove(block)
    return [(e.tag, e.attrib, (e.text or "").strip()) for e in root.iter()]


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
def test_a_description_is_replaced_and_nothing_else(packet):
    before = get_description(packet)
    assert before in ("", "old", "old old")
    changed = set_description(packet, TEXT)
    assert get_description(changed) == TEXT
    assert content(changed) == content(packet)
    again = set_description(changed, "two")
    assert (get_description(again), content(again)) == ("two", content(packet))
    assert set_description(again, TEXT) == changed  # it does not grow
    for kept in (b"<?xpacket", b"<!-- ", b"&#xA;"):
        assert changed.count(kept) == packet.replace(b"\0", b"").count(kept)


def texts(**by_language: str) -> str:
    """Return a description in several languages."""
    items = "".join(
        f'<rdf:li xml:lang="{key.replace("_", "-")}">{by_language[key]}</rdf:li>' for key in by_language
    )
    return f"<dc:description><rdf:Alt>{items}</rdf:Alt></dc:description>"


@pytest.mark.parametrize(
    ("before", "description", "after"),
    [
        (texts(x_default="old", de="alt"), "old", texts(x_default="new", de="alt")),
        (texts(x_default="", de="alt"), "", texts(x_default="new", de="alt")),
        (texts(de="alt"), "alt", texts(de="new")),
        (texts(en="old", de="alt"), "old alt", texts(x_default="new", en="old", de="alt")),
        ("<dc:description>old</dc:description>", "old", texts(x_default="new")),
        ("<dc:description><rdf:Alt/></dc:description>", "", texts(x_default="new")),
    ],
)
def test_only_the_default_or_only_text_is_replaced(before, description, after):
    old, expected = (DIGIKAM.replace(OLD.format("dc", "rdf"), text) for text in (before, after))
    assert get_description(old.encode()) == description
    changed = set_description(old.encode(), "new").decode()
    assert ElementTree.canonicalize(changed) == ElementTree.canonicalize(expected)


def test_characters_that_xml_cannot_contain_are_replaced():
    assert get_description(set_description(EMPTY_PACKET, "a\x05\n b\x00")) == "a\ufffd b\ufffd"


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"", "is not XMP .no element found"),
        (b"a caption", "is not XMP .syntax error"),
        (b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", "it has no rdf:RDF element"),
        (DARKTABLE.replace("UTF-8", "unknown").encode(), "is not XMP .unknown encoding"),
    ],
)
def test_what_cannot_be_edited_is_refused(packet, message):
    with pytest.raises(UserError, match=message):
        set_description(packet, "new")


@pytest.mark.exiftool
# exiftool expects the usual prefixes and a Unicode encoding.
@pytest.mark.parametrize("name", sorted(PACKETS.keys() - {"other prefixes", "default prefix", "Latin-1"}))
def test_exiftool_reads_the_description(tmp_path, name):
    exiftool = shutil.which("exiftool")
    if exiftool is None:
        pytest.skip("exiftool is not installed (Debian: libimage-exiftool-perl)")

    def read(packet: bytes) -> dict[str, object]:
        file = tmp_path / "dog.jpg.xmp"
        file.write_bytes(packet)
        command = [exiftool, "-json", "-G1", "-struct", "-charset", "utf8", "-XMP:all", str(file)]
        (tags,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return tags

    before, after = read(PACKETS[name]), read(set_description(PACKETS[name], TEXT))
    assert after.pop("XMP-dc:Description") == TEXT
    before.pop("XMP-dc:Description", None)
    assert after == before
    assert "Warning" not in " ".join(after)
