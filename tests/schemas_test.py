#!/usr/bin/env python3
"""Answers to random JSON schemas satisfy them. Usage: schemas_test.py PROGRAM [--count N] [--seed S].

The demo model, whose words mean nothing here, is sampled under each schema; what ended is checked by Python's jsonschema,
which is none of ours. A schema may be refused, with an error of 400 that says why; the reasons are counted.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import gtest_report

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT / 'build' / 'test-clients'))
try:
    import jsonschema
except ImportError:
    print('skipped: there is no jsonschema; tools/install_deps.sh --tests installs it')
    sys.exit(77)
from schema_maker import SchemaMaker  # noqa: E402

GIVEN = None
ENVIRONMENT = {**os.environ, 'CALANDRA_DEMO_DIR': str(ROOT / 'demo'), 'CALANDRA_BACKEND': 'cpu'}


def bias_at(temperature):
    """Little blank between values, and much of what ends strings, lists and objects or lets them go on."""
    folder = ROOT / 'demo' / 'demo-qwen3_5'
    vocabulary = json.loads((folder / 'tokenizer.json').read_text())['model']['vocab']
    ends = json.loads((folder / 'generation_config.json').read_text())['eos_token_id']
    bias = {token: 24 * temperature for token in (ends if isinstance(ends, list) else [ends])}
    for piece, token in vocabulary.items():
        if set(piece) & set('ĠĊčĉ') and not any(c.isalnum() and c not in 'ĠĊčĉ' for c in piece):
            bias[token] = -12 * temperature
        elif piece and set(piece) <= set('"]},'):
            bias[token] = 8 * temperature
    return bias


def answers(program, schemas, seed):
    """Of each schema: the status and what came."""
    temperatures = (1, 2, 4)  # the higher, the more lists and texts reach their limits
    biases = [bias_at(temperature) for temperature in temperatures]
    with tempfile.TemporaryDirectory() as folder:
        asked, told = (pathlib.Path(folder) / name for name in ('asked', 'told'))
        with asked.open('w') as file:
            for i, schema in enumerate(schemas):
                body = {'prompt': 'Once upon a time', 'max_tokens': 200, 'temperature': temperatures[i % 3], 'seed': seed + i, 'logit_bias': biases[i % 3],
                        'response_format': {'type': 'json_schema', 'json_schema': {'name': 's', 'schema': schema, 'strict': False}}}
                file.write(json.dumps({'custom_id': str(i), 'method': 'POST', 'url': '/v1/completions', 'body': body}) + '\n')
        subprocess.run([program, 'run-batch', '-i', asked, '-o', told, '--disable-log-stats', '--max-num-seqs', '16', '--max-model-len', '512'],
                       check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        for line in told.read_text().splitlines():
            response = json.loads(line)['response']
            yield response['status_code'], response['body']


def fault_of(text, schema):
    """A free name may stand twice in an object, which no grammar can rule out; either reading must satisfy the schema."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for pairs in (dict, lambda items: dict(reversed(items))):
        try:
            value = json.loads(text, object_pairs_hook=pairs)
        except ValueError as error:
            return f'no JSON: {error}'
        error = next(iter(validator.iter_errors(value)), None)
        if error:
            return f'{error.json_path}: {error.message}'
    return None


class Schemas(unittest.TestCase):
    def test_answers_are_as_their_schemas_say(self):
        schemas = [SchemaMaker(GIVEN.seed * 1_000_000 + i).make() for i in range(GIVEN.count)]
        for schema in schemas:
            jsonschema.Draft202012Validator.check_schema(schema)
        counts, refusals, faults = collections.Counter(), collections.Counter(), []
        told = list(answers(GIVEN.program, schemas, GIVEN.seed))
        assert len(told) == len(schemas)
        for i, (schema, (status, body)) in enumerate(zip(schemas, told)):
            if status == 400 and body['error']['message'].startswith('the output form cannot be used: '):
                counts['refused'] += 1
                refusals[re.sub(r'[0-9]+|"[^"]*"', '…', body['error']['message'].split(': ', 1)[1])[:90]] += 1
            elif status != 200:
                faults.append(f'schema {i}: {status} {body}')
            elif body['choices'][0]['finish_reason'] != 'stop':
                counts['cut at its length'] += 1
            else:
                try:
                    fault = fault_of(body['choices'][0]['text'], schema)
                except RecursionError:
                    # {"anyOf": [{"$ref": the same}, …]}: JSON Schema leaves open what that means, and jsonschema never ends.
                    counts['that name themselves in place'] += 1
                    continue
                counts['checked'] += 1
                if fault:
                    faults.append(f'schema {i}: {fault}\n  {json.dumps(schema, ensure_ascii=False)}\n  {body["choices"][0]["text"]!r}')
        print(f'{GIVEN.count} schemas of seed {GIVEN.seed}: {dict(counts)}, wrong: {len(faults)}')
        for why, count in refusals.most_common():
            print(f'  refused {count}: {why}')
        for fault in faults[:12]:
            print(fault)
        for what, number in counts.items():
            gtest_report.record(self, f'schemas_{what}', number)
        # Else it would say nothing.
        self.assertGreaterEqual(counts['checked'], GIVEN.count * 0.5, counts)
        self.assertEqual(len(faults), 0)


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('program')
    parser.add_argument('--count', type=int, default=120)
    parser.add_argument('--seed', type=int, default=1)
    GIVEN = parser.parse_args()
    sys.exit(gtest_report.main([]))
