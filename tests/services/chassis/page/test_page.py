"""The page at / over HTTP: its policy, who gets it, and how it is switched off."""

import re

import pytest

TOKEN = "s3cret-token"


async def test_the_page_admits_nothing_but_itself(serve):
    running = await serve()
    response = await running.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for source in policy.values():
        assert "unsafe" not in source
        assert "http" not in source


async def test_the_page_is_whole_and_names_no_other_host(serve):
    running = await serve()
    html = (await running.http.get("/")).text
    assert "loadMetadata();" in html
    assert "prefers-color-scheme: dark" in html
    assert "/* " not in html.partition("<style>")[2][:3]
    assert html.count("</script>") == html.count("</style>") == 1
    hosts = set(re.findall(r"https?://([\w.-]+)", html))
    assert hosts <= {"www.w3.org"}  # the name of SVG, never asked for


async def test_head_and_other_methods(serve):
    running = await serve()
    head = await running.http.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert (await running.http.post("/")).status_code == 405


async def test_the_page_needs_no_token_but_other_methods_do(serve):
    running = await serve(token=TOKEN)
    response = await running.http.get("/")
    assert response.status_code == 200
    assert TOKEN not in response.text
    assert (await running.http.head("/")).status_code == 200
    assert (await running.http.post("/")).status_code == 401


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_the_page_can_be_switched_off(serve, token):
    running = await serve(token=token, page=False)
    assert (await running.http.get("/")).status_code == 404
