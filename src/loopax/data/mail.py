"""What a mail says, without how it was sent: its subject and the text of its body."""

from __future__ import annotations

import email
import re
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from html.parser import HTMLParser

_BREAKS = {"br", "p", "div", "tr", "td", "table", "li", "ul", "ol", "hr", "h1", "h2", "h3", "title"}
_UNSEEN = {"script", "style"}
_LOOKS_LIKE_HTML = re.compile(r"\s*<(!doctype|html|head|body)\b", re.IGNORECASE)


def text_of_mail(raw: bytes) -> str:
    """Subject, an empty line, and the body of a mail as it was stored.

    No other header is kept, encodings are undone, tags are taken out of HTML, attachments and what
    is no text are left out. Of a body in several forms it is the plain one. What breaks the rules
    of mail, as spam likes to, is read as well as it can be.
    """
    message = email.message_from_bytes(raw)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    parts = [part for part in parts if part.get_content_disposition() != "attachment"]
    plain = [part for part in parts if part.get_content_subtype() != "html"]
    body = "\n".join(map(_text_of_part, plain or parts))
    return _tidy(f"{_subject(message)}\n\n{body}")


def text_of_html(page: str) -> str:
    """What a page shows: no tags, scripts or styles, character references resolved."""
    stripper = _Stripper()
    try:
        stripper.feed(page)
        stripper.close()
    except AssertionError:  # What the parser makes of a declaration that is none.
        return re.sub(r"<[^>]*>", " ", page)
    return "".join(stripper.seen)


class _Stripper(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.hidden = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _UNSEEN:
            self.hidden = tag
        if tag in _BREAKS:
            self.seen.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.hidden:
            self.hidden = ""

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.seen.append(data)


def _subject(message: Message) -> str:
    # As stored: what Message makes of bytes that no header should have cannot be undone.
    fields = (value for name, value in message.raw_items() if name.lower() == "subject")
    raw = str(next(fields, "")).encode("ascii", "surrogateescape")
    unfolded = " ".join(_decoded(raw, message.get_content_charset()).splitlines())
    return "".join(_decoded_words(unfolded))


def _decoded_words(header: str) -> Iterator[str]:
    try:
        words = decode_header(header)
    except HeaderParseError:  # A word that says it is base64 and is not.
        words = [(header, None)]
    for word, charset in words:
        yield word if isinstance(word, str) else _decoded(word, charset)


def _text_of_part(part: Message) -> str:
    payload = part.get_payload(decode=True)
    text = _decoded(payload if isinstance(payload, bytes) else b"", part.get_content_charset())
    is_html = part.get_content_subtype() == "html" or _LOOKS_LIKE_HTML.match(text)
    return text_of_html(text) if is_html else text


def _decoded(raw: bytes, charset: str | None) -> str:
    try:
        return raw.decode(charset or "utf-8")
    except (LookupError, ValueError):  # No charset has this name, or not these bytes.
        return raw.decode("cp1252", errors="replace")


def _tidy(text: str) -> str:
    """One space between words and at most one empty line between paragraphs."""
    text = re.sub("[\0\ud800-\udfff]", "", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
