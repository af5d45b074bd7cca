/** The page's words and examples in both languages, and numbers as each language writes them. */

export const WORDS = {
  en: {
    page_controls: "Page", model: "Model", conversation: "Conversation",
    new_chat: "New chat", new_chat_hint: "Starts over; this conversation is discarded",
    other_language: "中文", to_dark: "Dark", to_light: "Light",
    banner_kind: "Embedded model",
    banner_what: "A model of about {parameters} parameters, trained by this project so that everything works offline, right after installing. It is made for the few things below; asked anything else, it should say that it cannot answer.",
    examples_title: "What it can do",
    real_title: "Use a real model",
    fits_legend: "This machine has {memory} of memory. Choose a model, run both commands, reload.",
    fits_none: "This machine has {memory} of memory; none of the known models fits in it.",
    fits_plain: "Run these two commands, then reload this page.",
    too_large: "does not fit",
    welcome: "{model} is ready.",
    temperature: "Temperature", top_p: "Top-p", max_tokens: "Max tokens",
    settings: "Settings", settings_note: "An empty field means the server’s default, shown in grey.",
    prompt_label: "Message", prompt_placeholder: "Write a message…",
    keys: "Enter sends · Shift+Enter starts a new line", send: "Send", stop: "Stop",
    kept: "Kept in this tab only; closing the tab deletes it.",
    not_kept: "This conversation is too long to be kept: a reload will lose it.",
    to_latest: "↓ Latest", retry: "Retry", copy: "Copy", copied: "Copied", copy_failed: "Could not copy",
    copy_command: "Copy command: {command}",
    you: "You", assistant: "Answer", reasoning: "Reasoning",
    tool_call: "Tool call", tool_result: "Result, computed by this page",
    tokens: "{count} tokens", token: "1 token", rate: "{rate} tokens/s", first: "first token {seconds} s", context: "{used} of {all} context",
    stopped: "stopped", incomplete: "incomplete", cut: "cut off at the token limit", empty: "The model returned an empty answer.",
    answer_done: "Answer complete.",
    new_topic: "New topic: nothing above is sent",
    connecting: "Connecting…", loading: "Loading the model…", unreachable: "The server cannot be reached. Trying again…",
    key_label: "This server asks for an API key. It is kept in this tab only.", key_refused: "The server refused this key. Please check it.", key_use: "Use key",
    error_unreachable: "The server could not be reached.",
    error_broken: "The connection broke before the answer was complete.",
    error_key: "The server asks for an API key.",
    error_unreadable: "The server sent something this page cannot read.",
    error_status: "The server answered with error {status}.",
    error_unanswered: "This message has no answer yet.",
  },
  zh: {
    page_controls: "页面", model: "模型", conversation: "对话",
    new_chat: "新对话", new_chat_hint: "重新开始，当前对话将被丢弃",
    other_language: "English", to_dark: "深色", to_light: "浅色",
    banner_kind: "内置模型",
    banner_what: "约 {parameters}参数的小模型，由本项目自己训练，安装后无需联网即可使用全部功能。它专为下面这几类事而做；其他问题，它应当直说自己答不了。",
    examples_title: "它能做什么",
    real_title: "换用真正的模型",
    fits_legend: "本机内存 {memory}。选一个模型，运行下面两条命令，然后刷新本页。",
    fits_none: "本机内存 {memory}，已知的模型都放不下。",
    fits_plain: "运行下面两条命令，然后刷新本页。",
    too_large: "放不下",
    welcome: "{model} 已就绪。",
    temperature: "温度", top_p: "Top-p", max_tokens: "最大 token 数",
    settings: "设置", settings_note: "留空表示使用服务器的默认值（灰色显示）。",
    prompt_label: "消息", prompt_placeholder: "输入消息…",
    keys: "Enter 发送 · Shift+Enter 换行", send: "发送", stop: "停止",
    kept: "仅保存在此标签页：刷新后仍在，关闭标签页即删除。",
    not_kept: "对话太长，无法保存：刷新后会丢失。",
    to_latest: "↓ 最新", retry: "重试", copy: "复制", copied: "已复制", copy_failed: "复制失败",
    copy_command: "复制命令：{command}",
    you: "你", assistant: "回答", reasoning: "思考过程",
    tool_call: "工具调用", tool_result: "结果（由本页面计算）",
    tokens: "{count} 个 token", token: "1 个 token", rate: "{rate} token/秒", first: "首个 token {seconds} 秒", context: "上下文 {used} / {all}",
    stopped: "已停止", incomplete: "不完整", cut: "达到 token 上限，回答被截断", empty: "模型返回了空回答。",
    answer_done: "回答完成。",
    new_topic: "新话题：以上内容不会发送给模型",
    connecting: "正在连接…", loading: "正在加载模型…", unreachable: "无法连接服务器，正在重试…",
    key_label: "此服务器需要 API 密钥。密钥仅保存在此标签页。", key_refused: "服务器拒绝了此密钥，请检查。", key_use: "使用密钥",
    error_unreachable: "无法连接服务器。",
    error_broken: "回答尚未完成，连接已中断。",
    error_key: "此服务器需要 API 密钥。",
    error_unreadable: "服务器返回了无法识别的内容。",
    error_status: "服务器返回错误 {status}。",
    error_unanswered: "这条消息还没有得到回答。",
  },
};

/** What the embedded model is good at, as one click each: [title, message, does it offer tools]. */
export const EXAMPLES = {
  en: [
    ["Greet", "Hello!"],
    ["Explain fourbee", "What is fourbee?"],
    ["Add, step by step", "What is 347+285?"],
    ["Read a passage (not always right)", "The museum opens at nine in the morning. A ticket costs 12 euros. The director of the museum is Hanna Lindqvist.\n\nWho is the director of the museum?"],
    ["Call a tool", "Use the calculator: what is 347 * 285?", true],
    ["Admit a limit", "Who painted the Mona Lisa?"],
  ],
  zh: [
    ["打招呼", "你好！"],
    ["介绍 fourbee", "fourbee 是什么？"],
    ["逐步相加", "347+285等于多少？"],
    ["阅读短文（有时会错）", "文峰桥建于1927年。文峰桥全长84米。\n\n文峰桥有多长？"],
    ["调用工具", "请用计算器算一下 347*285 等于多少？", true],
    ["承认不知道", "《蒙娜丽莎》是谁画的？"],
  ],
};

export const LANGUAGE_TAGS = { en: "en", zh: "zh-CN" };

export let language = "en";

export function useLanguage(name) {
  language = name;
}

export function word(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, field) => values[field]);
}

export function number(value, options) {
  return new Intl.NumberFormat(LANGUAGE_TAGS[language], options).format(value);
}

export function gigabytes(bytes) {
  return `${number(bytes / 1e9, { maximumFractionDigits: bytes < 10e9 ? 1 : 0 })} GB`;
}
