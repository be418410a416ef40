#!/usr/bin/env python3
"""Checks every file of the repository: format, length, unfinished marks, and words that do not belong in it.

    check_files.py          report; exit 1 when something is wrong
    check_files.py --fix    clang-format in place, then report

  - C++ of src, tests, fuzz and bench is formatted as clang-format does it.
  - A source over 800 lines says why in its head comment, with the word "Length:".
  - No unfinished marks in code; no paths of one machine and no hosts of package registries anywhere.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CPP = {'.h', '.cc', '.cu', '.cuh', '.inl'}
CODE = CPP | {'.py', '.sh', '.js'}
FORMATTED = ('src', 'tests', 'fuzz', 'bench')
LONGEST = 800
# The classes of one letter keep these patterns from matching themselves.
FORBIDDEN = [
    (re.compile(r'/[w]ork/|/[f]arm/|/[r]oot/|/[h]ome/[a-z]|/[t]mp/bash_'), 'a path of one machine'),
    (re.compile(r'[a]rtifactregistry|[p]kg\.dev|[f]iles\.pythonhosted|[p]ypi\.org/simple|registry\.[n]pmjs|--index-[u]rl'),
     'a host of a package registry'),
]
UNFINISHED = re.compile(r'\b([T]ODO|[F]IXME|[X]XX|[H]ACK)\b')


def tracked():
    """Files that are committed or would be."""
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, check=True,
                            capture_output=True).stdout
    names = sorted({pathlib.PurePosixPath(name.decode()) for name in listed.split(b'\0') if name})
    return [name for name in names if (ROOT / name).is_file()]


def head_comment(text):
    lines = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith(('//', '/*', '*', '#', '"""')):
            break
        lines.append(line)
    return '\n'.join(lines)


def check_format(cpp, fix):
    command = ['clang-format'] + (['-i'] if fix else ['--dry-run', '-Werror'])
    problems = []
    for start in range(0, len(cpp), 50):
        run = subprocess.run(command + [str(name) for name in cpp[start:start + 50]], cwd=ROOT, capture_output=True, text=True)
        wrong = dict.fromkeys(line.split(':')[0] for line in run.stderr.splitlines() if ': error:' in line)
        problems += [f'{name}: not formatted (make format)' for name in wrong]
        if run.returncode != 0 and not wrong:
            problems.append(f'clang-format failed: {run.stderr.strip()}')
    return problems


def check_text(name, text):
    problems = []
    lines = text.splitlines()
    if name.suffix in CODE and len(lines) > LONGEST and 'Length:' not in head_comment(text):
        problems.append(f'{name}: {len(lines)} lines; over {LONGEST} the head comment gives the reason ("Length:")')
    for number, line in enumerate(lines, 1):
        for pattern, meaning in FORBIDDEN:
            if pattern.search(line):
                problems.append(f'{name}:{number}: {meaning}')
        if name.suffix in CODE and UNFINISHED.search(line):
            problems.append(f'{name}:{number}: an unfinished mark')
    return problems


def main():
    fix = '--fix' in sys.argv[1:]
    names = tracked()
    problems = check_format([name for name in names if name.suffix in CPP and name.parts[0] in FORMATTED], fix)
    lengths = []
    for name in names:
        data = (ROOT / name).read_bytes()
        if b'\0' in data:
            continue  # weights, images
        text = data.decode('utf-8', errors='replace')
        problems += check_text(name, text)
        if name.suffix in CODE:
            lengths.append((len(text.splitlines()), name))
    lengths.sort(reverse=True)
    counts = [count for count, _ in lengths] or [0]
    print(f'{len(lengths)} code files, {sum(counts)} lines, median {sorted(counts)[len(counts) // 2]}; longest: '
          + ', '.join(f'{name} {count}' for count, name in lengths[:5]))
    print(*problems, sep='\n', end='\n' if problems else '')
    print(f'files: {len(problems)} problem(s)' if problems else 'files: fine')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
