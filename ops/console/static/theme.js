// Light or dark: as the system says, until the operator chooses.

const KEY = "step35.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen === undefined ? system.matches : chosen === "dark";
}

export function startTheme(toggle, onChange) {
    const chosen = sessionStorage.getItem(KEY);
    if (chosen !== null) document.documentElement.dataset.theme = chosen;
    label(toggle);
    toggle.addEventListener("click", () => {
        const next = isDark() ? "light" : "dark";
        document.documentElement.dataset.theme = next;
        sessionStorage.setItem(KEY, next);
        label(toggle);
        onChange();
    });
    system.addEventListener("change", () => {
        label(toggle);
        onChange();
    });
}

function label(toggle) {
    toggle.textContent = isDark() ? "Light mode" : "Dark mode";
}
