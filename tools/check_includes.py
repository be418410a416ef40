#!/usr/bin/env python3
"""Checks the include direction of src/ (ARCHITECTURE.md): what each room may include, and what its CMakeLists.txt may link.

Rules
  - A room includes itself and the rooms of its row in MAY_INCLUDE, nothing else.
  - engine/ sees one header of models/: causal_lm.h. A model family never includes another family.
  - Only apps/ includes backends/* (a backend itself may, as its row says) or models/registry.h.
  - Of apps/, api/ and bench/ do not include each other.
  - CUDA conditionals stand in backends/cuda and in at most one file of apps/.
  - Project headers are included by their path from src/, so that this check sees them.
  - Tests (*_test.cc, *_test.h, and the folders tests, bench, fuzz) may include anything; nothing else may include a test's header.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BELOW_OPS = {'parallel', 'tensor', 'base'}
MAY_INCLUDE = {
    'base': set(),
    'tensor': {'base'},
    'parallel': {'tensor', 'base'},
    'ops': BELOW_OPS,
    'backends/reference': BELOW_OPS | {'ops'},
    'backends/cpu': BELOW_OPS | {'ops', 'backends/reference'},
    'backends/cuda': BELOW_OPS | {'ops', 'backends/reference'},
    'weights': BELOW_OPS | {'ops'},
    'cache': {'tensor', 'base'},
    'layers': BELOW_OPS | {'ops', 'weights', 'cache'},
    'models': BELOW_OPS | {'ops', 'weights', 'cache', 'layers'},
    'text': {'base'},
    'vision': {'tensor', 'base'},
    'net': {'base'},
    'engine': BELOW_OPS | {'models', 'cache', 'ops', 'text', 'vision'},
    'structured': {'engine', 'text', 'base'},
    'server': {'engine', 'base'},
    'apps': None,  # anything
}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
CUDA_CONDITIONAL = re.compile(r'^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*CUDA')
SOURCES = {'.h', '.cc', '.cu', '.cuh', '.inl'}


def room_of(path):
    """The room of a path relative to src/."""
    parts = pathlib.PurePosixPath(path).parts
    return '/'.join(parts[:2]) if parts[0] == 'backends' else parts[0]


def is_test(path):
    return pathlib.PurePosixPath(path).stem.endswith('_test')


def check_include(includer, header):
    """What is wrong with `includer` (a path in src/) including `header` (another one), or None."""
    if is_test(includer):
        return None
    if is_test(header):
        return 'a header of a test'
    room, target = room_of(includer), room_of(header)
    allowed = MAY_INCLUDE[room]
    if allowed is not None and target != room and target not in allowed:
        return f'{room} may include {", ".join(sorted(allowed)) or "no other room"}'
    if header == 'models/registry.h' and room != 'apps' and includer != 'models/registry.cc':
        return 'only apps names the model registry'
    if room == 'engine' and target == 'models' and header != 'models/causal_lm.h':
        return 'engine sees of models only causal_lm.h'
    if room == target == 'apps' and {pathlib.PurePosixPath(path).parts[1] for path in (includer, header)} == {'api', 'bench'}:
        return 'api and bench do not include each other'
    if room == 'models' and target == 'models':
        here, there = (pathlib.PurePosixPath(path).parts for path in (includer, header))
        if len(here) > 2 and len(there) > 2 and here[1] != there[1]:
            return 'a model family never includes another'
    return None


def check_source(src, path):
    name = path.relative_to(src).as_posix()
    room = room_of(name)
    if room not in MAY_INCLUDE:
        yield f'src/{name}: no rule for the room {room}; add its row here and in ARCHITECTURE.md'
        return
    for number, line in enumerate(path.read_text(errors='replace').splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            quote, header = match.groups()
            if (src / header).is_file():
                wrong = check_include(name, header)
                if wrong:
                    yield f'src/{name}:{number}: includes {header}: {wrong}'
            elif quote == '"' and not is_test(name):
                yield f'src/{name}:{number}: "{header}" is no path from src/'
        if CUDA_CONDITIONAL.match(line) and room not in ('backends/cuda', 'apps'):
            yield f'src/{name}:{number}: a CUDA conditional outside backends/cuda'


def check_links(src, path):
    """ROOMS of calandra_room(...) in a room's CMakeLists.txt."""
    room = room_of(path.relative_to(src).as_posix())
    rooms = {name.split('/')[-1]: name for name in MAY_INCLUDE}
    text = re.sub(r'#.*', '', path.read_text())
    for body in re.findall(r'calandra_room\(([^)]*)\)', text):
        linked = re.search(r'\bROOMS\b((?:\s+[\w/]+)*)', body)
        words = linked.group(1).split() if linked else []
        for word in words:
            if word in ('SOURCES', 'LIBRARIES'):
                break
            target = rooms.get(word.split('/')[-1].removeprefix('backend_').removeprefix('backends_'))
            allowed = MAY_INCLUDE.get(room, set())
            if target is None:
                yield f'src/{room}/CMakeLists.txt: links an unknown room {word}'
            elif allowed is not None and target != room and target not in allowed:
                yield f'src/{room}/CMakeLists.txt: links {word}, which {room} may not include'


def check(src):
    sources = sorted(path for path in src.rglob('*') if path.suffix in SOURCES)
    for path in sources:
        yield from check_source(src, path)
    for path in sorted(src.rglob('CMakeLists.txt')):
        yield from check_links(src, path)
    conditional = [path for path in sources if path.is_relative_to(src / 'apps')
                   and any(CUDA_CONDITIONAL.match(line) for line in path.read_text(errors='replace').splitlines())]
    if len(conditional) > 1:
        yield 'CUDA conditionals in more than one file of apps: ' + ', '.join(path.name for path in conditional)
    if not sources:
        yield f'no sources under {src}'


def main():
    src = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / 'src'
    problems = list(check(src))
    print(*problems, sep='\n', end='\n' if problems else '')
    print(f'include direction: {len(problems)} problem(s)' if problems else 'include direction: fine')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
