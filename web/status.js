// The live view: numbers of /metrics, asked for while it is open.
import {metrics} from './chat_api.js';
import {make} from './message_view.js';

const SECONDS = 2;
const POINTS = 60;
const panel = document.getElementById('status');
const histories = new Map(); // name of a chart -> its last values
let before = null;           // {time, values} of the last answer
let timer = 0;

// 'name{labels} value' lines as {name: [{labels, value}]}.
export function parseMetrics(text) {
  const found = {};
  for (const line of text.split('\n')) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (match) (found[match[1]] ??= []).push({labels: match[2] ?? '', value: Number(match[3])});
  }
  return found;
}

const valueOf = (found, name) => (found[name] ?? []).reduce((sum, one) => sum + one.value, 0);

// One value for each position of a draft.
function byPosition(found, name) {
  return (found[name] ?? []).map((one) => ({position: Number(/position="(\d+)"/.exec(one.labels)?.[1]), value: one.value}));
}

function svg(tag, attributes) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function sparkline(values) {
  const width = 240, height = 36;
  const most = Math.max(...values, 1e-9);
  const step = width / (POINTS - 1);
  const start = width - (values.length - 1) * step;
  const points = values.map((value, i) => `${(start + i * step).toFixed(1)},${(height - 2 - value / most * (height - 4)).toFixed(1)}`);
  const image = svg('svg', {viewBox: `0 0 ${width} ${height}`, class: 'spark', preserveAspectRatio: 'none', 'aria-hidden': 'true'});
  image.append(svg('polygon', {points: `${start.toFixed(1)},${height} ${points.join(' ')} ${width},${height}`}),
               svg('polyline', {points: points.join(' ')}));
  return image;
}

const number = (value) => (value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString('en') : value.toFixed(1));

function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

function chart(name, value) {
  const history = histories.get(name) ?? [];
  history.push(value);
  if (history.length > POINTS) history.shift();
  histories.set(name, history);
  const box = make('div', 'chart');
  const head = make('div', 'line');
  head.append(make('span', 'muted', name), make('strong', '', number(value)));
  box.append(head, sparkline(history));
  return box;
}

function positions(found) {
  const drafted = byPosition(found, 'calandra:spec_decode_num_draft_tokens_per_pos_total');
  const accepted = new Map(byPosition(found, 'vllm:spec_decode_num_accepted_tokens_per_pos_total').map((one) => [one.position, one.value]));
  if (drafted.length === 0) {
    const none = make('p', 'muted', 'No drafts yet. They come with ');
    none.append(make('span', 'unbroken', '--speculative-config'), '.');
    return [none];
  }
  return drafted.map(({position, value}) => {
    const part = value > 0 ? (accepted.get(position) ?? 0) / value : 0;
    const row = make('div', 'bar-row');
    const bar = svg('svg', {viewBox: '0 0 100 8', class: 'meter', preserveAspectRatio: 'none', 'aria-hidden': 'true'});
    bar.append(svg('rect', {width: '100', height: '8', class: 'track'}), svg('rect', {width: (100 * part).toFixed(1), height: '8'}));
    row.append(make('span', 'muted', String(position + 1)), bar, make('span', '', `${Math.round(100 * part)} %`));
    return row;
  });
}

function facts(found) {
  const of = (name) => valueOf(found, name);
  const queries = of('vllm:prefix_cache_queries_total');
  const hits = of('vllm:prefix_cache_hits_total');
  return [
    ['Pages', `${number(of('calandra:pages_used'))} of ${number(of('calandra:pages'))}`],
    ['Slots', `${number(of('calandra:slots_used'))} of ${number(of('calandra:slots'))}`],
    ['Checkpoints', `${number(of('calandra:checkpoints'))} (${bytes(of('calandra:checkpoint_bytes'))})`],
    ['Cache hits', queries > 0 ? `${number(hits)} of ${number(queries)} (${Math.round(100 * hits / queries)} %)` : 'none yet'],
    ['Generated', number(of('vllm:generation_tokens_total'))],
    ['Preemptions', number(of('vllm:num_preemptions_total'))],
  ];
}

async function refresh() {
  const note = document.getElementById('status-note');
  let found;
  try {
    found = parseMetrics(await metrics());
  } catch {
    note.textContent = 'The server does not answer.';
    before = null;
    return;
  }
  note.textContent = `Every ${SECONDS} seconds, the last ${POINTS * SECONDS / 60} minutes.`;
  const now = performance.now();
  const rate = (name) => (before ? Math.max(0, (valueOf(found, name) - valueOf(before.found, name)) / ((now - before.time) / 1000)) : 0);
  document.getElementById('charts').replaceChildren(
      chart('Tokens per second', rate('vllm:generation_tokens_total')),
      chart('Prompt tokens per second', rate('vllm:prompt_tokens_total')),
      chart('Running', valueOf(found, 'vllm:num_requests_running')),
      chart('Waiting', valueOf(found, 'vllm:num_requests_waiting')));
  before = {time: now, found};
  document.getElementById('positions').replaceChildren(...positions(found));
  document.getElementById('facts').replaceChildren(
      ...facts(found).flatMap(([name, value]) => [make('dt', '', name), make('dd', '', value)]));
}

async function loop() {
  await refresh();
  if (!panel.hidden) timer = setTimeout(loop, 1000 * SECONDS);
}

export function toggle(isOpen) {
  if (panel.hidden === !isOpen) return;
  panel.hidden = !isOpen;
  document.getElementById('open-status').setAttribute('aria-expanded', String(isOpen));
  clearTimeout(timer);
  before = null;
  if (isOpen) loop();
}
