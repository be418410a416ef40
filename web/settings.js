// The settings dialog: fields of a request, kept in this browser.
import * as store from './store.js';

const NUMBERS = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed'];
const TEXTS = ['system', 'thinking', 'tools'];
const field = (name) => document.getElementById('set-' + name);

function readTools(text) {
  if (!text.trim()) return [];
  const tools = JSON.parse(text);
  if (!Array.isArray(tools)) throw new Error('it must be a list [ … ]');
  return tools;
}

export function open() {
  const dialog = document.getElementById('settings');
  if (!dialog.open) dialog.showModal();
}

// onChange is called when a field was changed.
export function start(onChange) {
  const kept = store.settings();
  for (const name of [...NUMBERS, ...TEXTS]) {
    field(name).value = kept[name] ?? '';
    field(name).addEventListener('change', () => {
      store.saveSettings({...store.settings(), [name]: field(name).value});
      onChange(name);
    });
  }
  field('key').value = store.apiKey();
  field('key').addEventListener('change', () => {
    store.saveApiKey(field('key').value.trim());
    onChange('key');
  });
  const showFault = () => {
    const fault = document.getElementById('tools-fault');
    fault.textContent = '';
    try {
      readTools(field('tools').value);
    } catch (error) {
      fault.textContent = 'Tools are left out: ' + error.message;
    }
  };
  field('tools').addEventListener('input', showFault);
  showFault();
  const dialog = document.getElementById('settings');
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
}

// What the settings add to a request.
export function requestFields() {
  const fields = {};
  for (const name of NUMBERS) {
    const value = field(name).value.trim();
    if (value !== '' && Number.isFinite(Number(value))) fields[name] = Number(value);
  }
  if (field('thinking').value) fields.chat_template_kwargs = {enable_thinking: field('thinking').value === 'on'};
  try {
    const tools = readTools(field('tools').value);
    if (tools.length > 0) fields.tools = tools;
  } catch { // the dialog says so
  }
  return fields;
}

export const systemPrompt = () => field('system').value.trim();
