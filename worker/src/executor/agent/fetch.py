"""Fetches one address and prints its status, its type and its text; exit code 1 when it cannot be had."""
import sys
import urllib.error
import urllib.parse
import urllib.request

LIMIT = 1 << 20


def show(answer):
    kind = answer.headers.get_content_type() if answer.headers else ""
    charset = (answer.headers.get_content_charset() if answer.headers else None) or "utf-8"
    body = answer.read(LIMIT + 1)
    print(f"HTTP {answer.status} {kind}\n")
    if b"\0" in body[:1024]:
        print(f"(binary, at least {len(body)} bytes: fetch it with bash or python into a file)")
        return
    try:
        text = body[:LIMIT].decode(charset, "replace")
    except LookupError:
        text = body[:LIMIT].decode("utf-8", "replace")
    print(text)
    if len(body) > LIMIT:
        print(f"[cut after {LIMIT} bytes]")


url = sys.argv[1]
if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
    sys.exit("only http and https addresses can be fetched")
request = urllib.request.Request(url, headers={"User-Agent": "hothouse-fetch", "Accept": "*/*"})
try:
    show(urllib.request.urlopen(request, timeout=30))
except urllib.error.HTTPError as answer:
    show(answer)
    sys.exit(1)
except (OSError, ValueError) as error:
    sys.exit(f"{url} cannot be fetched: {getattr(error, 'reason', error)}")
