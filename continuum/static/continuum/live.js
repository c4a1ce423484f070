/* Keeps a page up to date while what it shows is live: asks for its fragment, and puts it in place of the old one. It rests
   while nobody looks, while something in it is being selected, and stops for good when what it shows has ended. Without
   it the page is complete, and as old as its loading. */
"use strict";
(() => {
    const root = document.querySelector("[data-continuum-fragment]");
    if (!root || !root.querySelector("[data-continuum-live]")) {
        return;
    }
    const EVERY = 2000;
    // What takes long to make is made less often: looking costs the server a tenth of its time, at most.
    const PATIENCE = 10;
    const SLOWEST = 30000;
    let pause = EVERY;
    let timer = null;
    let last = null;

    const inUse = () => {
        const selection = document.getSelection();
        const selecting = selection && !selection.isCollapsed && root.contains(selection.anchorNode);
        const focused = document.activeElement;
        return selecting || (root.contains(focused) && focused.matches("input, select, textarea"));
    };

    const keyOf = (element) => element.dataset.continuumKey;

    const replace = (html) => {
        const open = new Set([...root.querySelectorAll("details[open][data-continuum-key]")].map(keyOf));
        const focused = root.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
        root.innerHTML = html;
        root.querySelectorAll("details[data-continuum-key]").forEach((details) => {
            details.open = open.has(keyOf(details));
        });
        if (focused) {
            const same = [...root.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === focused);
            if (same) {
                same.focus({ preventScroll: true });
            }
        }
    };

    const refresh = async () => {
        timer = null;
        if (document.hidden) {
            return;
        }
        if (!inUse()) {
            try {
                const asked = performance.now();
                const answer = await fetch(root.dataset.continuumFragment, { redirect: "error" });
                if (answer.status === 403 || answer.status === 404) {
                    return;
                }
                if (!answer.ok) {
                    throw new Error(answer.statusText);
                }
                const html = await answer.text();
                pause = Math.min(SLOWEST, Math.max(EVERY, PATIENCE * (performance.now() - asked)));
                if (html !== last && !inUse()) {
                    replace(html);
                    last = html;
                }
            } catch {
                pause = Math.min(pause * 2, SLOWEST);
            }
        }
        if (root.querySelector("[data-continuum-live]")) {
            timer = setTimeout(refresh, pause);
        }
    };

    document.addEventListener("visibilitychange", () => {
        if (!document.hidden && timer === null && root.querySelector("[data-continuum-live]")) {
            refresh();
        }
    });
    timer = setTimeout(refresh, EVERY);
})();
