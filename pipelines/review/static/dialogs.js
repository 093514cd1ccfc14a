// Dialogs: why a clip was decided so, the name of a new profile. Esc and Cancel leave everything as it was.

import { $ } from "./dom.js";

let marked = "reject";

export function askReason(stands) {
  $("reason-text").value = stands?.reason ?? "";
  marked = stands?.choice ?? marked;
  for (const choice of ["keep", "reject"]) $(`reason-${choice}`).classList.toggle("primary", choice === marked);
  $("reason").showModal();
  $("reason-text").focus();
}

export function askToSave() {
  $("save-error").textContent = "";
  $("save").showModal();
}

// decided(choice, reason); save(name) rejects with what is wrong with the name.
export function wireDialogs(decided, save) {
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => $(button.dataset.close).close());
  }
  $("reason-form").addEventListener("submit", (event) => {
    event.preventDefault();
    marked = event.submitter?.value ?? marked;
    $("reason").close();
    decided(marked, $("reason-text").value.trim());
  });
  $("reason-text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("reason-form").requestSubmit($(`reason-${marked}`));
  });
  $("save-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await save($("save-name").value);
      $("save").close();
    } catch (error) {
      $("save-error").textContent = error.message;
    }
  });
}
