"""What the tests of the command line share: runs of the built program on the demo models. With GTEST_OUTPUT=xml:FOLDER/ cases are
written there as GoogleTest does.
"""
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

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


class XmlResult(unittest.TextTestResult):
    """Keeps what a GoogleTest report says of each case."""
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.cases = []

    def stopTest(self, test):
        case = ElementTree.Element('testcase', name=test.id().split('.')[-1], classname=type(test).__name__, status='run')
        self.cases.append(case)
        for broken, text in self.failures + self.errors:
            if getattr(broken, 'test_case', broken) is test:
                ElementTree.SubElement(case, 'failure', message=text)
                break
        super().stopTest(test)


def main(cases):
    """Runs the test cases of a class; the program is the first argument."""
    Program.path = os.path.abspath(sys.argv[1])
    result = unittest.TextTestRunner(resultclass=XmlResult, verbosity=1).run(unittest.defaultTestLoader.loadTestsFromTestCase(cases))
    output = os.environ.get('GTEST_OUTPUT', '')
    if output.startswith('xml:'):
        suites = ElementTree.Element('testsuites')
        ElementTree.SubElement(suites, 'testsuite', name=cases.__name__).extend(result.cases)
        ElementTree.ElementTree(suites).write(os.path.join(output[4:], pathlib.Path(sys.argv[0]).stem + '.xml'))
    return 0 if result.wasSuccessful() else 1
