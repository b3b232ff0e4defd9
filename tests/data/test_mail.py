"""Mails as they were stored: the words that are kept, and the headers that are not."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopax.data.mail import text_of_html, text_of_mail

HEADERS = b"From someone Mon\nReceived: from secret.example\nX-Spam: yes\nTo: me@example\n"


def test_subject_and_body_are_kept_and_no_other_header():
    raw = HEADERS + b"Subject: Hello\n  there\n\nFirst  line\r\n\r\n\r\n\r\nSecond line\n"
    assert text_of_mail(raw) == "Hello there\n\nFirst line\n\nSecond line"


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (b"=?iso-8859-1?q?caf=E9?=", "café"),
        (b"=?utf-8?b?" + base64.b64encode("日本".encode()) + b"?=", "日本"),
        (b"caf\xe9", "café"),
        (b"=?no-such-charset?q?caf=E9?=", "café"),
        (b"=?utf-8?b?a?=", "=?utf-8?b?a?="),
    ],
)
def test_subjects_are_decoded(subject, expected):
    assert text_of_mail(b"Subject: " + subject + b"\n\nbody") == f"{expected}\n\nbody"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (b"text/plain; charset=iso-8859-2", b"\xb1", "ą"),
        (b"text/plain; charset=nonsense", b"\x93hi\x94", "“hi”"),
        (b"text/html", b"<p>a&amp;b<br>c<script>d</script><!-- e -->", "a&b\nc"),
        (b"text/plain", b"<HTML><b>not</b> plain</HTML>", "not plain"),
        (b"text/plain", b"1 <b> 2", "1 <b> 2"),
        (b"image/png", b"abc", ""),
    ],
)
def test_bodies_are_decoded(kind, body, expected):
    assert text_of_mail(b"Content-Type: " + kind + b"\n\n" + body) == expected


def test_of_several_forms_the_plain_one_is_kept_and_attachments_are_not():
    def part(kind, body, more=b""):
        return b"--x\nContent-Type: text/" + kind + b"\n" + more + b"\n" + body + b"\n"

    encoded = b"Content-Transfer-Encoding: base64\n"
    attached = b"Content-Disposition: attachment\n"
    html = part(b"html", b"<b>loud</b>")
    parts = [html, part(b"plain", b"cGxhaW4=", encoded), part(b"plain", b"file", attached)]
    start = b"Subject: s\nContent-Type: multipart/mixed; boundary=x\n\n"
    assert text_of_mail(start + b"".join(parts) + b"--x--\n") == "s\n\nplain"
    assert text_of_mail(start + html + b"--x--\n") == "s\n\nloud"


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([b"", b"Subject: ", b"Content-Type: text/html\n\n<", b"Content-Type: "]),
    st.binary(max_size=60),
)
def test_any_bytes_become_some_text(start, rest):
    text = text_of_mail(start + rest)
    text.encode()
    assert "\0" not in text


@given(st.text("<![&;>-ab \"'/", max_size=30))
def test_any_page_becomes_some_text(page):
    assert isinstance(text_of_html(page), str)
