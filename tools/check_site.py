"""Follow every link of a built site: pages, anchors, pictures, scripts, styles. Nothing is fetched.

    python tools/check_site.py _docs

What a page loads must be a file of the site, so that it works without a network;
only what a reader clicks may lead elsewhere.
"""

import posixpath
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: attributes that hold addresses: a reader follows those of `<a>` and `<area>`, the browser loads all others
ADDRESSES = ("href", "src", "srcset", "poster", "data", "action")
LOADED = {"stylesheet", "icon", "shortcut", "preload", "modulepreload", "manifest", "apple-touch-icon"}
CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)")


class Page(HTMLParser):
    "Anchors of a page, and the addresses in it: those that it loads and those that a reader may follow."

    def __init__(self, text):
        super().__init__()
        self.ids, self.loads, self.follows, self.base = set(), [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = {k: v or "" for k, v in attrs}
        self.ids |= {a[k] for k in ("id", "name") if a.get(k) and (k == "id" or tag == "a")}
        if tag == "link" and not LOADED & set(a.get("rel", "").split()):
            return
        for key in ADDRESSES:
            if key not in a:
                continue
            urls = [part.split()[0] for part in a[key].split(",") if part.strip()] if key == "srcset" else [a[key]]
            (self.follows if tag in ("a", "area") else self.loads).extend(urls)
        self.loads += CSS_URL.findall(a.get("style", ""))


@dataclass
class Report:
    "What was found."

    pages: int = 0
    links: int = 0  # within the site
    outside: set[str] = field(default_factory=set)  # addresses elsewhere, which a reader may follow
    broken: list[str] = field(default_factory=list)  # 'page: address: why'


def check(root):
    "Follow all links of the site in a folder."
    root, report = Path(root).resolve(), Report()
    files = {f.relative_to(root).as_posix(): f.stat().st_size for f in root.rglob("*") if f.is_file()}
    pages = {
        f: Page((root / f).read_text(encoding="utf8"))
        for f in sorted(files)
        if f.endswith(".html") and not f.startswith("_static/")
    }
    report.pages = len(pages)
    for file, page in pages.items():
        for url in page.loads:
            follow(file, url, files, pages, report, loaded=True)
        for url in page.follows:
            follow(file, url, files, pages, report)
    for file in (f for f in files if f.endswith(".css")):
        for url in CSS_URL.findall((root / file).read_text(encoding="utf8")):
            follow(file, url, files, pages, report, loaded=True)
    return report


def follow(file, url, files, pages, report, loaded=False):
    "One address in a file: count it, and say what is wrong with it."

    def wrong(why):
        report.broken.append(f"{file}: {url[:120]}: {why}")

    parts = urlsplit(url)
    if parts.scheme in ("data", "javascript", "mailto") or (loaded and url.startswith("#")):
        return
    if parts.scheme or parts.netloc:
        if loaded:
            wrong("expected a file of the site, found an address elsewhere")
        elif parts.scheme not in ("http", "https") or not parts.netloc:
            wrong("expected an address that begins with https://")
        report.outside.add(url)
        return
    report.links += 1
    if parts.path.startswith("/"):
        return wrong("expected a relative address: the site may live in a folder")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), unquote(parts.path))) if parts.path else file
    if target.startswith(".."):
        return wrong("expected a file of the site, found one outside of it")
    if target not in files:
        target = posixpath.normpath(posixpath.join(target, "index.html"))
    if target not in files:
        return wrong("expected a file there, found none")
    if not files[target]:
        return wrong("expected a file with something in it")
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        wrong(f"expected an anchor {anchor!r} in that page, found none")


def main(root="_docs"):
    if not (Path(root) / "index.html").is_file():
        sys.exit(f"{root}: expected a built site, found no index.html: run `make docs`")
    report = check(root)
    for line in report.broken:
        print(line)
    print(
        f"{report.pages} pages, {report.links:,} links and files within the site checked, {len(report.broken)} broken; "
        f"{len(report.outside)} addresses elsewhere"
    )
    sys.exit(bool(report.broken))


if __name__ == "__main__":
    main(*sys.argv[1:])
