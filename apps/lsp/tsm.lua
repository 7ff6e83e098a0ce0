-- Ghost text from tsm-lsp in Neovim 0.7 and later: :luafile apps/lsp/tsm.lua, or in init.lua
--
--     dofile('/path/to/tsm.lua')({ cmd = { 'tsm-lsp', '/path/to/model.tflite' } })
--
-- In insert mode Tab takes a word of it, the right arrow all, and Esc leaves as ever. Neovim 0.12 has
-- this built in: see neovim.md.

local space = vim.api.nvim_create_namespace('tsm')
local ghost -- { text =, range =, tick = }: what is shown, and of which state of the buffer

local function hide()
  ghost = nil
  vim.api.nvim_buf_clear_namespace(0, space, 0, -1)
end

local function tick()
  return vim.api.nvim_buf_get_changedtick(0)
end

local function show(text, range)
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  local replaces = range.start.character < range['end'].character
  ghost = { text = text, range = range, tick = tick() }
  vim.api.nvim_buf_set_extmark(0, space, row - 1, column, {
    virt_text = { { replaces and ' → ' .. text or text, 'Comment' } },
    virt_text_pos = 'overlay',
  })
end

local function ask()
  hide()
  local client = vim.lsp.get_client_by_id(vim.b.tsm)
  if not client or not client.initialized then return end
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  if column < #vim.api.nvim_get_current_line() then return end -- only where a line ends
  local asked = tick()
  local params = vim.lsp.util.make_position_params(0, 'utf-16')
  params.context = { triggerKind = 2 } -- automatic
  vim.lsp.buf_request(0, 'textDocument/inlineCompletion', params, function(_, result)
    local item = result and (result.items or result)[1]
    if not item or asked ~= tick() or vim.api.nvim_get_mode().mode ~= 'i' then return end
    local now = vim.api.nvim_win_get_cursor(0)
    if now[1] == row and now[2] == column then show(item.insertText, item.range) end
  end)
end

local function take(pattern)
  local taken = ghost
  if not taken or taken.tick ~= tick() then return false end
  local row, column = unpack(vim.api.nvim_win_get_cursor(0))
  local line = vim.api.nvim_get_current_line()
  local start = vim.str_byteindex(line, taken.range.start.character, true)
  local text = start < column and taken.text or taken.text:match(pattern) or taken.text
  hide()
  vim.api.nvim_buf_set_text(0, row - 1, start, row - 1, column, { text })
  vim.api.nvim_win_set_cursor(0, { row, start + #text })
  return true
end

local function map(key, pattern)
  vim.keymap.set('i', key, function()
    if ghost then
      vim.schedule(function() take(pattern) end)
      return ''
    end
    return key
  end, { expr = true, buffer = true })
end

return function(options)
  options = options or {}
  vim.api.nvim_create_autocmd('FileType', {
    pattern = options.filetypes or { 'text', 'markdown', 'gitcommit', 'mail' },
    callback = function()
      if vim.b.tsm then return end
      local client = vim.lsp.start_client({
        name = 'tsm',
        cmd = options.cmd or { 'tsm-lsp' },
        root_dir = vim.fn.getcwd(),
      })
      if not client then return end
      vim.b.tsm = client
      vim.lsp.buf_attach_client(0, client)
      vim.bo.omnifunc = 'v:lua.vim.lsp.omnifunc'
      map('<Tab>', '^%s*%S+')
      map('<Right>', '^.*$')
      vim.api.nvim_create_autocmd({ 'TextChangedI', 'CursorMovedI' }, { buffer = 0, callback = ask })
      vim.api.nvim_create_autocmd('InsertLeave', { buffer = 0, callback = hide })
    end,
  })
end
