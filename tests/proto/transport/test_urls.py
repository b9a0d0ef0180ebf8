"""URLs and credentials as people write them."""

import pytest

from reward_api.transport.base import Credentials, Target, parse_url


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://ocr:8101", Target("http", "ocr", 8101)),
        ("http://ocr", Target("http", "ocr", 80)),
        ("https://host/rewards/ocr/", Target("https", "host", 443, "/rewards/ocr")),
        ("grpc://[::1]:9101", Target("grpc", "::1", 9101)),
        ("grpcs+dns://ocr:9101", Target("grpcs", "ocr", 9101, resolve=True)),
    ],
)
def test_urls(url, target):
    assert parse_url(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "ocr:8101",
        "ftp://ocr",
        "http://",
        "http://user:pass@ocr",
        "http://ocr?x=1",
        "http://ocr:port",
        "grpc://ocr",
        "grpc://ocr:1/path",
        "http+srv://ocr",
        "http://ocr/a b",
        "http://ocr\r\nx: y",
        "",
    ],
)
def test_wrong_urls_show_the_right_form(url):
    with pytest.raises(ValueError, match="expected http://host:port"):
        parse_url(url)


@pytest.mark.parametrize(
    "options", [{"token": "a b"}, {"token": "a\n"}, {"token": ""}, {"cert_file": "c.pem"}]
)
def test_wrong_credentials(options):
    with pytest.raises(ValueError, match=r"token|key_file"):
        Credentials(**options)


def test_the_password_of_a_wrong_url_is_not_shown():
    with pytest.raises(ValueError, match=r"http://\*\*\*@ocr.*no user") as caught:
        parse_url("http://user:pass@ocr")
    assert "pass@" not in str(caught.value)
