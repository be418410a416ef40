#!/usr/bin/env python3
"""Runs ctest in a build folder and counts: programs, cases, passed, skipped, failed; the last line says the result.

    run_tests.py BUILD [arguments for ctest, such as -LE long]

ctest counts programs; GoogleTest, and Python tests by tests/gtest_report.py, write their cases as XML, which is summed here. Skipped cases are listed with their reason,
and what the cases say that they compared (RecordProperty("logits_rows", n), a whole number) is summed for each program.
"""
import collections
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree


def main():
    build, arguments = sys.argv[1], sys.argv[2:]
    results = os.path.abspath(os.path.join(build, 'test-results'))
    shutil.rmtree(results, ignore_errors=True)
    os.makedirs(results)
    start = time.monotonic()
    command = ['ctest', '--test-dir', build, '-j', str(os.cpu_count()), '--output-on-failure', '--no-tests=error']
    status = subprocess.run(command + arguments, env={**os.environ, 'GTEST_OUTPUT': f'xml:{results}/'}).returncode

    programs = cases = failed = 0
    skipped = []
    compared = {}  # program -> what -> sum
    for name in sorted(os.listdir(results)):
        programs += 1
        counts = compared[name.removesuffix('.xml')] = collections.Counter()
        for case in ElementTree.parse(os.path.join(results, name)).iter('testcase'):
            if case.get('status') == 'notrun':
                continue
            cases += 1
            failed += case.find('failure') is not None
            for item in case.iter('property'):
                if item.get('value', '').isdecimal():
                    counts[item.get('name').replace('_', ' ')] += int(item.get('value'))
            reason = case.find('skipped')
            if reason is not None:
                lines = [line.strip() for line in reason.get('message', '').splitlines() if line.strip()]
                skipped.append(f"  {case.get('classname')}.{case.get('name')}: {lines[-1] if lines else 'no reason given'}")

    if any(compared.values()):
        print('\ncompared:')
        for program, counts in compared.items():
            for what, count in sorted(counts.items()):
                if count > 0:
                    print(f'  {program:<24} {what:<32} {count:>10,}')
    if skipped:
        print('\nskipped:', *skipped, sep='\n')
    passed = cases - failed - len(skipped)
    print(f'\n{programs} programs of GoogleTest and Python, {cases} cases: {passed} passed, {len(skipped)} skipped, {failed} failed '
          f'({time.monotonic() - start:.0f} s)')
    print('TESTS PASSED' if status == 0 else 'TESTS FAILED')
    return 0 if status == 0 else 1


if __name__ == '__main__':
    sys.exit(main())
