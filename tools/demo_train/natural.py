"""Natural-language text from Debian packages, as plain-text documents.

Every source is freely redistributable; see demo/LICENSE for the list.  `documents(root)` yields (source, text).
`root` is the directory made by fetch_sources.sh.
"""
import gzip
import html
import re
import struct
import unicodedata
import zlib
from pathlib import Path

# Upper bound of the characters taken per source.
LIMIT = {
    'bible': 4.5e6, 'austen': 4.5e6, 'jargon': 1.6e6, 'foldoc': 5e6, 'devil': 4e5, 'gcide': 7e6, 'elements': 1e5,
    'wordnet': 8e6, 'fortunes': 1.5e6, 'python': 6e6, 'perl': 4e6, 'postgresql': 4e6, 'cppreference': 4e6,
}
FORTUNES = ['art', 'computers', 'cookie', 'definitions', 'education', 'food', 'goedel', 'humorists', 'kids', 'law', 'linux',
            'linuxcookie', 'literature', 'love', 'magic', 'medicine', 'miscellaneous', 'news', 'people', 'pets', 'platitudes',
            'riddles', 'science', 'songs-poems', 'sports', 'startrek', 'tao', 'translate-me', 'wisdom', 'work', 'zippy']


def clean(text):
    text = unicodedata.normalize('NFC', text.replace('\r', '').replace('\x08', '').replace('\t', '    '))
    text = ''.join(c for c in text if c == '\n' or c >= ' ')
    text = re.sub(r'[ ]+\n', '\n', text)
    return re.sub(r'\n{3,}', '\n\n', text).strip()


def unwrap(text):
    """Joins the lines of paragraphs."""
    return re.sub(r'(?<=\S)\n[ ]*(?=[A-Za-z("\'0-9])', ' ', text)


def html_text(raw):
    body = raw.split('<body', 1)[-1].split('>', 1)[-1]
    body = re.sub(r'(?is)<(script|style|head|nav|form)\b.*?</\1>', '', body)
    body = re.sub(r'(?is)<(/?(p|div|li|ul|ol|tr|table|h\d|dt|dd|dl|pre|blockquote)|br)\b[^>]*>', '\n', body)
    body = re.sub(r'(?is)</t[dh]>', '  ', body)
    body = re.sub(r'(?s)<!--.*?-->', '', body)
    body = html.unescape(re.sub(r'(?s)<[^>]*>', '', body)).replace('\xa0', ' ')
    body = re.sub(r'[ ]{2,}', ' ', body)
    return clean(re.sub(r'\n\s*\n+', '\n\n', body))


def dict_entries(path, separator=r'\n(?=\S)'):
    """Entries of a dictd data file: a headword at the start of a line, indented text below."""
    data = gzip.open(path, 'rt', encoding='utf-8', errors='replace').read()
    for entry in re.split(separator, data):
        if not entry.startswith('00-database') and len(entry) > 30:
            yield entry


def bible(root):
    chapter, lines = None, []
    for line in open(root / 'bible.txt', encoding='utf-8', errors='replace'):
        match = re.match(r'(\w+?)(\d+):(\d+)\s+(.*)', line)
        if not match:
            continue
        if (match[1], match[2]) != chapter and lines:
            yield f'{chapter[0]}, chapter {chapter[1]}\n\n' + ' '.join(lines)
            lines = []
        chapter = (match[1], match[2])
        lines.append(match[4])


def austen(root):
    raw = (root / 'x/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb').read_bytes()
    pos = 0
    while pos < len(raw):
        try:
            block = zlib.decompressobj()
            data = block.decompress(raw[pos + 4:])
        except zlib.error:
            pos += 1
            continue
        pos = len(raw) - len(block.unused_data)
        lines, i = [], 0
        while i + 8 <= len(data):  # CHARSXP records of an R serialisation: flags word ending in type 9, length, bytes
            if data[i + 3] == 9 and data[i] == 0 and data[i + 1] in (0, 4) and data[i + 2] in (0, 0x40, 0x80, 0x20):
                size = struct.unpack('>i', data[i + 4:i + 8])[0]
                if 0 <= size < 200 and i + 8 + size <= len(data):
                    lines.append(data[i + 8:i + 8 + size].decode('utf-8', 'replace'))
                    i += 8 + size
                    continue
            i += 1
        text = '\n'.join(lines)
        if len(text) < 50000:
            continue
        for chapter in re.split(r'\n(?=(?:CHAPTER|Chapter) )', text):
            paragraphs = [re.sub(r'\s+', ' ', p).strip() for p in re.split(r'\n\s*\n', chapter)]
            part = []
            for paragraph in paragraphs:
                part.append(paragraph)
                if sum(map(len, part)) > 4000:
                    yield '\n\n'.join(part)
                    part = []
            if part:
                yield '\n\n'.join(part)


def gcide(root):
    skip = re.compile(r'\[\w[^\]]*(?:Webster|PJC|WordNet|Collaborative)[^\]]*\]')
    for k, entry in enumerate(dict_entries(root / 'x/usr/share/dictd/gcide.dict.dz')):
        if k % 4 == 0 and entry[0].isalpha() and len(entry) > 150:
            yield unwrap(re.sub(r'[ ]{2,}', ' ', skip.sub('', entry)))


def wordnet(root):
    kind = {'n': 'noun', 'v': 'verb', 'a': 'adjective', 's': 'adjective', 'r': 'adverb'}
    batch = []
    for part in ('noun', 'verb', 'adj', 'adv'):
        for k, line in enumerate(open(root / f'x/usr/share/wordnet/data.{part}', encoding='latin-1')):
            if line.startswith(' ') or (part == 'noun' and k % 2):
                continue
            head, gloss = line.split('|', 1)
            fields = head.split()
            words = [fields[4 + 2 * i].replace('_', ' ').split('(')[0] for i in range(int(fields[3], 16))]
            batch.append(f'{", ".join(words)} ({kind[fields[2]]}): {gloss.strip()}')
            if len(batch) == 12:
                yield '\n'.join(batch)
                batch = []


def fortunes(root):
    for name in FORTUNES:
        path = root / 'x/usr/share/games/fortunes' / name
        if path.is_file():
            for item in re.split(r'\n%\n', path.read_text('utf-8', 'replace')):
                yield item


def python(root):
    base = root / 'x/usr/share/doc/python3.11/html/_sources'
    for folder in ('tutorial', 'library', 'howto', 'reference', 'faq', 'using'):
        for path in sorted((base / folder).glob('*.txt')):
            text = path.read_text('utf-8', 'replace')
            text = re.sub(r':\w+(?::\w+)*:`~?!?([^`<]*?)(?:\s*<[^>]*>)?`', r'`\1`', text)
            yield text


def perl(root):
    for path in sorted((root / 'x/usr/share/perl/5.36.0/pod').glob('*.pod')):
        if not re.match(r'perl\d', path.name):
            text = path.read_text('utf-8', 'replace')
            text = re.sub(r'[A-Z]<{1,2}\s?([^<>|]*\|)?([^<>]*?)\s?>{1,2}', r'\2', text)
            yield re.sub(r'(?m)^=(head\d|item|over|back|cut|pod|encoding|for|begin|end)[ ]?', '', text)


def html_tree(folder, pattern):
    for path in sorted(folder.rglob(pattern)):
        yield html_text(path.read_text('utf-8', 'replace'))


def cppreference(folder):
    """Title and article of each page, without the navigation."""
    for path in sorted(folder.rglob('*.html')):
        raw = path.read_text('utf-8', 'replace')
        title = html_text(re.search(r'(?s)<title>(.*?)</title>', raw)[1]).split(' - cppreference')[0]
        starts = [i for i in (raw.find(mark) for mark in ('<table class="t-dcl-begin"', '<p>', '<table class="t-dsc-begin"')) if i > 0]
        if starts:
            article = raw[min(starts):].split('<div class="printfooter"')[0].split('class="t-navbar')[0]
            yield title + '\n\n' + html_text('<body>' + article)


def split(text, size=6000):
    """Cuts long documents at paragraph boundaries."""
    part, length = [], 0
    for paragraph in text.split('\n\n'):
        part.append(paragraph)
        length += len(paragraph)
        if length > size:
            yield '\n\n'.join(part)
            part, length = [], 0
    if part:
        yield '\n\n'.join(part)


def documents(root):
    root = Path(root)
    dictd = root / 'x/usr/share/dictd'
    sources = {
        'bible': bible(root), 'austen': austen(root), 'gcide': gcide(root), 'wordnet': wordnet(root),
        'jargon': map(unwrap, dict_entries(dictd / 'jargon.dict.dz')),
        'foldoc': map(unwrap, dict_entries(dictd / 'foldoc.dict.dz')),
        'devil': map(unwrap, dict_entries(dictd / 'devil.dict.dz', r'\n\n(?=[A-Z-]+, )')),
        'elements': map(unwrap, dict_entries(dictd / 'elements.dict.dz', r'\n\n')),
        'fortunes': fortunes(root), 'python': python(root), 'perl': perl(root),
        'postgresql': html_tree(root / 'x/usr/share/doc/postgresql-doc-15/html', '*.html'),
        'cppreference': cppreference(root / 'x/usr/share/cppreference/doc/html/en/cpp'),
    }
    for name, items in sources.items():
        total = 0
        for item in items:
            text = clean(item)
            if len(text) < 40:
                continue
            for part in split(text):
                total += len(part)
                yield name, part
            if total > LIMIT[name]:
                break


if __name__ == '__main__':
    import collections
    import sys
    sizes, counts, sample = collections.Counter(), collections.Counter(), {}
    for name, text in documents(sys.argv[1]):
        sizes[name] += len(text)
        counts[name] += 1
        if counts[name] == 40:
            sample[name] = text[:300]
    for name, size in sizes.items():
        print(f'{name:14} {size / 1e6:7.2f} MB  {counts[name]} documents')
    print(f'{sum(sizes.values()) / 1e6:.1f} MB')
    for name, text in sample.items():
        print('=' * 20, name)
        print(text)
