#!/usr/bin/env python3
"""The command line as people and scripts meet it: bench and inspect.

    cli_bench_test.py PROGRAM
"""
import json
import sys

from cli_harness import ENVIRONMENT, ROOT, CliCase, main


class CliBench(CliCase):
    def test_inspect_plans_any_size(self):
        plan = json.loads(self.ok('inspect', '--json', '--max-num-seqs', '60000', '--max-model-len', '32768', '--block-size', '1'))
        memory = plan['memory']
        self.assertGreater(memory['total'], 4e12)
        parts = 'weights', 'pages', 'slots', 'workspace', 'batch', 'rings', 'scratch'
        self.assertEqual(memory['total'], sum(memory[part] for part in parts))
        scratch = [json.loads(self.ok('inspect', '--json', env={**ENVIRONMENT, 'CALANDRA_THREADS': n}))['memory']['scratch'] for n in '12']
        self.assertGreater(scratch[1], scratch[0])
        self.assertGreater(plan['drafter']['total'], 0)
        self.assertGreater(plan['vision']['weights'], 0)
        self.fails(1, 'more than can be counted', 'inspect', '--max-num-seqs', '65536', '--max-model-len', '32768',
                   '--block-size', '1')

    # benches of the engine

    def bench(self, *args):
        done = self.ok('bench', *args, '--json', '--input-len', '6', '--output-len', '4')
        return [json.loads(line) for line in done.splitlines()]

    def test_bench_throughput(self):
        fixed = self.bench('throughput', '--num-prompts', '3', '--max-concurrency', '1,2')
        self.assertEqual([line['max_concurrency'] for line in fixed], [1, 2])
        for line in fixed:
            self.assertEqual((line['completed'], line['failed'], line['total_input_tokens'], line['total_output_tokens']), (3, 0, 18, 12))
            self.assertLess(line['median_ttft_ms'], line['median_e2el_ms'])
        self.assertEqual(fixed[0]['steps'], 12, 'one after the other')
        self.assertLess(fixed[1]['steps'], 12)
        agent, = self.bench('throughput', 'demo:bailing', '--mix', 'agent', '--num-prompts', '2', '--num-turns', '3', '--prefix-len', '40')
        self.assertEqual(agent['completed'], 6)
        prompts = [40 + 6 * turns + 4 * (turns - 1) for turns in (1, 2, 3)]
        self.assertEqual(agent['total_input_tokens'], 2 * sum(prompts))
        self.assertGreater(agent['total_cached_tokens'], 0.9 * agent['total_reusable_tokens'])
        poisson, = self.bench('throughput', '--mix', 'poisson', '--request-rate', '50', '--num-prompts', '3')
        self.assertEqual((poisson['completed'], poisson['request_rate']), (3, 50))

    def test_bench_compares_speculation(self):
        mtp = ('--speculative-config', '{"method": "mtp"}', '--compare-speculation', '--engines', '2', '--rounds', '1', '--max-concurrency', '2')
        lines = self.bench('throughput', *mtp, '--fixed-drafts', '2', '--dataset-path', str(ROOT / 'README.md'))
        self.assertEqual([line['drafts'] for line in lines], ['none', 'none again', 'adaptive', 'fixed 2'])
        none, again, _, fixed = lines
        self.assertEqual([none[f'speedup{end}'] for end in ('', '_low', '_high')], [1, 1, 1])
        for line in again, fixed:
            self.assertTrue(0 < line['speedup_low'] < line['speedup'] < line['speedup_high'], line)
        self.assertEqual((none['draft_tokens'], again['draft_tokens']), (0, 0))
        self.assertEqual(again['steps'], none['steps'])  # the first rounds count in neither
        self.assertEqual(none['steps'], none['engines'] * none['rounds'] * none['output_len'])
        self.assertGreater(fixed['draft_tokens'], 0)
        dummy = ('throughput', *mtp, '--fixed-drafts', '2', '--load-format', 'dummy', '--seed', '1', '--synthetic-acceptance')
        for rates, accepted in ('1,1', 1), ('0', 0), ('1,0', 0.5):
            line = self.bench(*dummy, rates)[3]
            self.assertGreater(line['draft_tokens'], 0)
            least, most = accepted * line['draft_tokens'] * 0.6, accepted * line['draft_tokens']
            self.assertTrue(least <= line['accepted_tokens'] <= most, line)  # an answer ends within a run

    def test_bench_acceptance(self):
        for demo in 'demo:qwen3_5', 'demo:bailing':
            line, = self.bench('acceptance', demo, '--dataset-path', str(ROOT / 'README.md'), '--num-prompts', '2', '--temperature', '0.8')
            self.assertEqual(line['places'], 4)
            for name in 'coupled', 'ideal', 'greedy', 'accepted_up_to':
                self.assertEqual(len(line[name]), 3)
                self.assertTrue(all(0 <= rate <= 1 for rate in line[name]), line)
        greedy, = self.bench('acceptance', '--dataset-path', str(ROOT / 'README.md'), '--num-prompts', '2', '--temperature', '0')
        self.assertEqual(greedy['coupled'], greedy['greedy'])

    def test_bench_flags_are_checked(self):
        throughput = ('bench', 'throughput')
        mtp = ('--speculative-config', '{"method": "mtp"}')
        for words, *flags in (('--request-rate', '--mix', 'poisson'), ('--num-turns', '--num-turns', '3'), ('--speculative-config', '--compare-speculation'),
                              ('--num-prompts', '--compare-speculation', *mtp, '--num-prompts', '3'), ('--fixed-drafts', '--fixed-drafts', '1'),
                              ('dummy', '--synthetic-acceptance', '0.5', *mtp), ('mtp', '--synthetic-acceptance', '0.5'),
                              ('must not grow', '--synthetic-acceptance', '0.5,0.6', '--load-format', 'dummy', *mtp),
                              ('--max-concurrency', '--max-concurrency', '1,0'), ('from 0 to 1', '--synthetic-acceptance', '2')):
            self.fails(2, words, *throughput, *flags)
        self.fails(2, '--dataset-path', 'bench', 'acceptance')
        self.fails(2, '--synthetic-acceptance', 'generate', 'hi', '--synthetic-acceptance', '0.5')

    def test_inspect_plans_the_engine(self):
        def memory(*flags):
            return json.loads(self.ok('inspect', '--json', *flags))['memory']
        plain = memory()
        parts = 'weights', 'pages', 'slots', 'workspace', 'batch', 'rings', 'scratch'
        kept = memory('--enable-prefix-caching', '--checkpoint-bytes', str(5 * plain['slot_bytes']))
        self.assertEqual((plain['num_slots'], kept['num_slots']), (9, 14))
        drafts = memory('--speculative-config', '{"method": "mtp"}')
        self.assertGreater(drafts['rings'], 0)
        self.assertGreater(drafts['slot_bytes'], plain['slot_bytes'])
        for plan in plain, kept, drafts:
            self.assertEqual(plan['total'], sum(plan[part] for part in parts))
        self.assertEqual(memory('--kv-cache-memory-bytes', '1M')['num_pages'], 2**20 // plain['page_bytes'])
        self.assertEqual(memory('--max-model-len', '4K'), memory('--max-model-len', '4.096k'))


if __name__ == '__main__':
    sys.exit(main())
