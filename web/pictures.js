// Pictures that go with the next message, as data: URLs: chosen, pasted or dropped.
import {button, icon, make} from './message_view.js';

const MOST_BYTES = 10 << 20;
const $ = (id) => document.getElementById(id);

let urls = [];
let complain = () => {};

export const count = () => urls.length;

export function take() {
  const taken = urls;
  urls = [];
  show();
  return taken;
}

function show() {
  $('attached').replaceChildren(...urls.map((url, i) => {
    const item = make('li');
    const picture = make('img');
    picture.src = url;
    picture.alt = `Picture ${i + 1}`;
    const remove = button('', () => {
      urls.splice(i, 1);
      show();
      $('input').focus();
    }, `Remove picture ${i + 1}`);
    remove.className = 'icon';
    remove.append(icon('close'));
    item.append(picture, remove);
    return item;
  }));
}

function dataUrl(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });
}

async function attach(files) {
  for (const file of files) {
    if (!file.type.startsWith('image/')) {
      complain(`${file.name} is no picture.`);
    } else if (file.size > MOST_BYTES) {
      complain(`${file.name} is larger than ${MOST_BYTES >> 20} MiB.`);
    } else {
      urls.push(await dataUrl(file));
    }
  }
  show();
}

// onFault is told what cannot be attached.
export function start(onFault) {
  complain = onFault;
  $('attach').addEventListener('click', () => $('attach-file').click());
  $('attach-file').addEventListener('change', (event) => attach([...event.target.files]).then(() => (event.target.value = '')));
  $('input').addEventListener('paste', (event) => {
    if (event.clipboardData.files.length === 0) return;
    event.preventDefault();
    attach([...event.clipboardData.files]);
  });
  document.addEventListener('dragover', (event) => event.preventDefault());
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    attach([...event.dataTransfer.files]);
  });
}
