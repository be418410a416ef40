"""What the tests of the command line share: runs of the built program on the demo models."""
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import gtest_report

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, 'CALANDRA_DEMO_DIR': str(ROOT / 'demo'), 'CALANDRA_THREADS': '1', 'CALANDRA_BACKEND': 'cpu'}
GREEDY = ('--temperature', '0', '--max-tokens', '3')
LIMITS = ('--max-model-len', '--num-gpu-blocks-override', '--num-state-slots', '--max-num-seqs', '--max-num-batched-tokens')


class Program:
    path = ''


class CliCase(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix='calandra_cli_'))
        self.addCleanup(shutil.rmtree, self.folder)

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def run_program(self, *args, stdin='', **more):
        more = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'env': ENVIRONMENT, 'timeout': 60, **more}
        if 'preexec_fn' not in more and not isinstance(stdin, str):
            more['stdin'] = stdin
        else:
            more['input'] = stdin.encode()
        done = subprocess.run([Program.path, *args], **more)
        done.out, done.err = (done.stdout or b'').decode(), (done.stderr or b'').decode()
        return done

    def ok(self, *args, **more):
        done = self.run_program(*args, **more)
        self.assertEqual(done.returncode, 0, f'{args}: {done.err}')
        return done.out

    def fails(self, status, words, *args, **more):
        """The last line on standard error is one error that holds the words."""
        done = self.run_program(*args, **more)
        self.assertEqual(done.returncode, status, f'{args}: {done.err}')
        last = (done.err.splitlines() or [''])[-1]
        self.assertTrue(last.startswith('calandra: error: '), f'{args}: {done.err}')
        for word in words if isinstance(words, tuple) else (words,):
            self.assertIn(word, last, args)
        return done

    # models

    def broken_copy(self, demo='qwen3_5'):
        """A demo model without a tensor: what is refused nevertheless with another message is so before weights are read."""
        model = self.folder / 'broken'
        shutil.copytree(ROOT / 'demo' / f'demo-{demo}', model)
        (model / 'model.safetensors').write_bytes(struct.pack('<Q', 8) + b'{}      ')
        return model


def main():
    """Runs the test cases; the program is the first argument."""
    Program.path = os.path.abspath(sys.argv.pop(1))
    return gtest_report.main()
