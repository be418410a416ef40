"""Python's unittest with GoogleTest's reports, which tools/run_tests.py sums: with GTEST_OUTPUT=xml:FOLDER/ the cases of a program are
written there.
"""
import os
import pathlib
import sys
import unittest
import xml.etree.ElementTree as ElementTree


def record(test, name, number):
    """As RecordProperty("logits_rows", n): a whole number of what a case compared."""
    test.__dict__.setdefault('recorded', {})[name] = number


class Result(unittest.TextTestResult):
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
        for skipped, reason in self.skipped:
            if skipped is test:
                ElementTree.SubElement(case, 'skipped', message=reason)
        for name, number in getattr(test, 'recorded', {}).items():
            ElementTree.SubElement(case, 'property', name=name, value=str(number))
        super().stopTest(test)


def main(arguments=None):
    """Runs all cases of the program, or those that `arguments` (as of unittest, by default the program's) name; the exit status."""
    runner = unittest.TextTestRunner(resultclass=Result)
    result = unittest.main(argv=[sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)], testRunner=runner, exit=False).result
    output = os.environ.get('GTEST_OUTPUT', '')
    if output.startswith('xml:'):
        suites = ElementTree.Element('testsuites')
        ElementTree.SubElement(suites, 'testsuite').extend(result.cases)
        ElementTree.ElementTree(suites).write(os.path.join(output[4:], pathlib.Path(sys.argv[0]).stem + '.xml'))
    return 0 if result.wasSuccessful() else 1
