#!/usr/bin/env python3
"""lm_eval over HTTP gives the log-likelihoods of `calandra logits`. Run by hand: needs `pip install 'lm_eval[api]' transformers safetensors`.

    lm_eval_check.py PROGRAM

A local multiple-choice task (no hub), prompts as token ids, echo with logprobs. Recorded in bench/results/lm_eval.md.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy
import serve_harness
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

FOLDER = serve_harness.ROOT / 'demo' / 'demo-qwen3_5'
# The last one's answer is not the likeliest.
QUESTIONS = [('What is 2 + 3?', ['5', '6', '23'], 0), ('The cat sat on the', ['mat.', 'sky 🌞', 'número'], 0),
             ('Once upon a', ['time', 'banana'], 0), ('"Ancient" means', ['very old', 'neu', '日本'], 1)]
TASK = """task: calandra_local
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""


def samples_of(server, folder):
    questions = folder / 'questions.jsonl'
    questions.write_text(''.join(json.dumps(dict(zip(('question', 'choices', 'answer'), one))) + '\n' for one in QUESTIONS))
    (folder / 'task.yaml').write_text(TASK.replace('QUESTIONS', str(questions)))
    arguments = {'model': serve_harness.MODEL, 'base_url': f'http://127.0.0.1:{server.port}/v1/completions', 'tokenizer': FOLDER,
                 'tokenizer_backend': 'huggingface', 'tokenized_requests': True, 'num_concurrent': 4}
    subprocess.run([sys.executable, '-m', 'lm_eval', 'run', '--model', 'local-completions', '--tasks', 'calandra_local', '--include_path', folder,
                    '--model_args', ','.join(f'{name}={value}' for name, value in arguments.items()), '--log_samples', '--output_path', folder / 'out'],
                   check=True, env={**os.environ, 'HF_HUB_OFFLINE': '1', 'HF_DATASETS_CACHE': str(folder / 'cache')})
    return [json.loads(line) for file in (folder / 'out').rglob('samples_*.jsonl') for line in file.read_text().splitlines()]


def expected(program, folder, context, choice):
    """The log-likelihood from the rows of `calandra logits`, in float64, whether it is the greedy answer, and its number of tokens."""
    tokenizer = Tokenizer.from_file(str(FOLDER / 'tokenizer.json'))
    ids, begin = tokenizer.encode(context + choice).ids, len(tokenizer.encode(context).ids)
    save_file({'input_ids': numpy.array(ids, numpy.int64)}, folder / 'ids')
    subprocess.run([program, 'logits', serve_harness.MODEL, '--input', folder / 'ids', '--output', folder / 'logits', '--dtype', 'float32'],
                   check=True, env=serve_harness.ENVIRONMENT, capture_output=True)
    rows = load_file(folder / 'logits')['logits'][begin - 1:-1].astype(numpy.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= numpy.log(numpy.exp(rows).sum(axis=1, keepdims=True))
    wanted = ids[begin:]
    return rows[numpy.arange(len(wanted)), wanted].sum(), bool((rows.argmax(axis=1) == wanted).all()), len(wanted)


def main():
    serve_harness.PROGRAM = sys.argv[1]
    pairs, tokens, values, worst, greedy, right = 0, 0, [], 0.0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        server = serve_harness.Server('--dtype', 'float32')
        try:
            samples = samples_of(server, folder)
        finally:
            server.end()
        assert len(samples) == len(QUESTIONS), samples
        for sample in samples:
            wanted = []
            for (said, is_greedy), asked in zip(sample['filtered_resps'], sample['arguments'].values()):
                value, best, count = expected(sys.argv[1], folder, asked['arg_0'], asked['arg_1'])
                wanted.append(value)
                worst = max(worst, abs(float(said) - value))
                greedy += (str(is_greedy) == 'True') == best
                pairs, tokens = pairs + 1, tokens + count
            values += wanted
            right += sample['acc'] == (int(numpy.argmax(wanted)) == sample['doc']['answer'])
    print(f'{pairs} pairs, {tokens} tokens: log-likelihoods differ by {worst:.1e} at most (values {min(values):.2f} to {max(values):.2f}), '
          f'is_greedy equal {greedy} of {pairs}, accuracy equal {right} of {len(samples)} questions')
    assert worst < 1e-5 and greedy == pairs and right == len(samples)


if __name__ == '__main__':
    main()
